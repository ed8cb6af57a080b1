"""Learning online with demonstrations: half of each batch comes from stored episodes."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config, parse_cfg
from tdmpc2.data.batch import Batch
from tdmpc2.data.episodes import write_episodes
from tdmpc2.data.store.importer import ensure_store
from tdmpc2.data.tools.convert import to_store
from tdmpc2.loading import load_agent
from tdmpc2.support.mapped_files import FileChangedError, UnchangedFile
from tdmpc2.training.demonstrations import Batches, demonstrations_problems, demonstrations_record
from tdmpc2.training.online import train_online
from tdmpc2.training.online_estimate import dry_run_online
from tdmpc2.training.ring import make_ring
from tests.helpers.data import save_raw
from tests.helpers.online import assert_same, config, interrupt
from tests.helpers.runs import TASKS, TINY, rows
from tests.helpers.toy_envs import FALLS, STANDS, STANDS_FOR

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def own_set(tmp_path: Path) -> str:
    """Write a set of three tasks with episodes of one length."""
    path = tmp_path / "three.yaml"
    path.write_text("tasks: [mw-reach, mw-push, mw-sweep]\n")
    return str(path)


def demonstrate(
    directory: Path, task: str = STANDS, ends: tuple[tuple[int, bool], ...] = ((7, False), (4, False))
) -> str:
    """Write episodes whose observations are far from those of the environments."""
    logs = [(np.full((n + 1, 4), 100.0 + n), np.zeros((n, 2)), np.ones(n)) for n, _ in ends]
    write_episodes(directory, task, logs, terminated=[end for _, end in ends])
    return str(directory)


@pytest.mark.parametrize("place", ["auto", "disk"])
def test_half_of_each_batch_is_of_the_demonstrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    seen: list[Batch] = []
    update = TDMPC2.update
    monkeypatch.setattr(TDMPC2, "update", lambda self, batch: (seen.append(batch), update(self, batch))[1])
    cfg = config(tmp_path, demonstrations=demonstrate(tmp_path / "shown"), batch_size=9, data_device=place)
    train_online(cfg, None)
    assert len(seen) == cfg.num_updates - 1
    for batch in seen:
        shown = batch.obs[..., 0] > 50
        assert shown[:, :4].all()  # the smaller half
        assert not shown[:, 4:].any()
    lengths = torch.stack([batch.obs[0, :4, 0] for batch in seen])
    assert set(lengths.unique().tolist()) == {104.0, 107.0}
    assert "Half of each batch: 2 episodes of" in (cfg.run_dir / "train.log").read_text()


def test_so_many_episodes_of_the_demonstrations_are_shown(tmp_path: Path) -> None:
    """The number was dropped without a word, and all of them were."""
    shown = demonstrate(tmp_path / "shown", ends=((7, False), (5, False), (4, False)))
    cfg = config(tmp_path, demonstrations=shown, batch_size=9, max_episodes_per_task=2)
    train_online(cfg, None)
    assert "Half of each batch: 2 episodes of" in (cfg.run_dir / "train.log").read_text()


@pytest.mark.parametrize("env_workers", [0, 1])
def test_demonstrations_changed_on_disk_stop_the_run_with_what_was_learned_saved(
    env_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command then continues, and ends as a run without the interruption."""
    shown = demonstrate(tmp_path / "shown")
    keys: dict[str, Any] = {"demonstrations": shown, "data_device": "disk", "utd": 2.0, "env_workers": env_workers}
    whole = config(tmp_path / "whole", **keys)
    train_online(whole, None)
    cut = config(tmp_path / "cut", **keys)
    check, calls = UnchangedFile.check, 0

    def changed(self: UnchangedFile) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise FileChangedError("rows.npy was written to")
        check(self)

    with monkeypatch.context() as patch:
        patch.setattr(UnchangedFile, "check", changed)
        with pytest.raises(FileChangedError):
            train_online(cut, None)
    assert 0 < (load_file(cut.run_dir / "model.pt").step or 0) < cut.steps
    train_online(cut, None)
    assert_same(cut.run_dir, whole.run_dir)


def test_run_with_demonstrations_that_is_stopped_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"demonstrations": demonstrate(tmp_path / "shown", FALLS, ((3, True), (9, False)))}
    keys |= {"task": FALLS, "episodic": True}
    straight = train_online(config(tmp_path / "straight", **keys), None).parent
    cfg = config(tmp_path, **keys)
    interrupt(monkeypatch, 30, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train_online(cfg, None)
    monkeypatch.undo()
    moved = shutil.move(cfg.demonstrations or "", tmp_path / "moved")  # moving is allowed
    train_online(cfg.replace(demonstrations=str(moved)), None)
    first, second = (torch.load(run / "state.pt", weights_only=True) for run in (straight, cfg.run_dir))
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert first["parts"]["learner"] == second["parts"]["learner"]
    assert (straight / "train.csv").read_bytes() == (cfg.run_dir / "train.csv").read_bytes()


@pytest.mark.parametrize("other", ["others", "none"])
def test_run_does_not_go_on_with_other_demonstrations(tmp_path: Path, other: str) -> None:
    cfg = config(tmp_path, demonstrations=demonstrate(tmp_path / "shown"), steps=25)
    train_online(cfg, None)
    others = demonstrate(tmp_path / "others", ends=((5, False),)) if other == "others" else None
    with pytest.raises(ValueError, match=r"holds a run with other data .*demonstrations="):
        train_online(cfg.replace(demonstrations=others, steps=30), None)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no directory": ({"demonstrations": "nowhere"}, "demonstrations=[^ ]*nowhere: [^ =]*nowhere is not a directory"),
    "another task": ({"task": FALLS}, "demonstrations=.*: .*holds .*Stands-v0"),
    "terminations": (
        {"demonstrations": "falls", "task": FALLS},
        "demonstrations=.*1 episodes terminated, .*episodic=",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_demonstrations_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    keys, message = REFUSED[case]
    shown = to_store([demonstrate(tmp_path / "shown")], tmp_path / "store").path
    demonstrate(tmp_path / "falls", FALLS, ((3, True),))
    name = keys.get("demonstrations")
    cfg = config(tmp_path, **{**keys, "demonstrations": str(tmp_path / name if name else shown)})
    for start in (train_online, dry_run_online):
        with pytest.raises(ValueError, match=message):
            start(cfg, None)
    assert not cfg.run_dir.exists()


@pytest.mark.parametrize(("keys", "message"), [
    ({"mode": "offline"}, "demonstrations=x are shown to a run that learns online: .*data_dir=x"),
    ({"obs": "rgb", "task": "cup-catch"}, "obs=rgb: demonstrations=x hold states, no images"),
    ({"batch_size": 1}, "batch_size=1 leaves no half of a batch"),
    ({"demonstrations": None, "bc_coef": 0.5}, "bc_coef=0.5 imitates demonstrations: name them as demonstrations=DIR"),
])  # fmt: skip
def test_demonstrations_without_a_use_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cfg({"task": STANDS, "mode": "online", "demonstrations": "x", **keys})


def test_demonstrations_of_some_of_many_tasks_are_taken(data_dir: Path) -> None:
    """A run rarely has demonstrations of every task that it learns."""
    cfg = Config(
        **{**TINY, "tasks": ("walker-walk", *TASKS), "mode": "online", "demonstrations": str(data_dir), "steps": 1000}
    )
    ring = make_ring(cfg.replace(save_agent=False), torch.device("cpu"))
    ring.add(np.zeros((6, 24)), np.zeros((6, 6)), np.zeros(6), task=cfg.task_ids[0])
    batches = Batches.of(cfg, ring, torch.device("cpu"), demonstrations_record(cfg))
    task = batches.draw(0).task
    assert set(task[:8].tolist()) <= set(cfg.task_ids[1:])
    assert set(task[8:].tolist()) == {cfg.task_ids[0]}
    with pytest.raises(ValueError, match="it has no episodes of the tasks of this run"):
        Batches.of(cfg.replace(tasks=("cup-spin",)), ring, torch.device("cpu"), None)


def test_demonstrations_in_chunk_files_without_a_record_are_of_the_runs_task_set(tmp_path: Path, own_set: str) -> None:
    """Such files are those of TD-MPC2's data sets, or of a task set of one's own."""
    cfg = parse_cfg({"task": own_set, "mode": "online", "demonstrations": str(tmp_path / "shown"), "work_dir": "run"})
    gen = torch.Generator().manual_seed(1)
    rows = max(spec.episode_length for spec in cfg.task_specs) + 1
    sizes = {"obs": (2, rows, cfg.obs_dim), "action": (2, rows, cfg.action_dim), "reward": (2, rows)}
    values = {name: torch.rand(size, generator=gen) for name, size in sizes.items()}
    values["action"][:, 0] = values["reward"][:, 0] = torch.nan
    task = torch.tensor([[1], [2]], dtype=torch.int32).expand(-1, rows).clone()
    (tmp_path / "shown").mkdir()
    save_raw(tmp_path / "shown" / "chunk_0.pt", {**values, "task": task})
    assert demonstrations_problems(cfg) == []
    record = demonstrations_record(cfg)
    ensure_store(tmp_path / "shown", cfg.task, cfg.task_specs, quiet=True)  # as a run that leaves them on disk does
    assert demonstrations_problems(cfg) == []
    assert demonstrations_record(cfg) == record


def test_estimate_of_a_run_names_its_demonstrations(tmp_path: Path) -> None:
    cfg = config(tmp_path, demonstrations=demonstrate(tmp_path / "shown"))
    assert any("shown, 0.00 GB beside the buffer, half of each batch" in line for line in dry_run_online(cfg, None))


def test_run_of_an_older_version_goes_on_without_demonstrations(tmp_path: Path) -> None:
    """The record of an older run does not have the key ``demonstrations``."""
    cfg = config(tmp_path, steps=25)
    train_online(cfg, None)
    path = cfg.run_dir / "run.json"
    record = json.loads(path.read_text())
    del record["demonstrations"]
    path.write_text(json.dumps(record))
    train_online(cfg.replace(steps=3 * STANDS_FOR + 8), None)
    assert (cfg.run_dir / "train.csv").read_text().count("\n") > 1


def test_policy_imitates_demonstrations_and_not_its_own_actions(tmp_path: Path) -> None:
    """Demonstrated actions are 0.9 and the run's own ones random, so imitation is visible in the policy."""
    obs, action = np.zeros((8, 4)), np.full((7, 2), 0.9)
    write_episodes(tmp_path / "shown", STANDS, [(obs, action, np.zeros(7))])
    keys: dict[str, Any] = {"demonstrations": str(tmp_path / "shown"), "log_freq": 1, "lr": 3e-3, "steps": 80}
    cfg = config(tmp_path, bc_coef=30.0, **keys)
    train_online(cfg, None)
    log = rows(cfg.run_dir / "train.csv")
    assert log[-1]["bc_loss"] < 0.2 * log[0]["bc_loss"]
    plain = config(tmp_path / "plain", **keys)
    train_online(plain, None)
    assert "bc_loss" not in rows(plain.run_dir / "train.csv")[0]
    acted, without = (policy_of(c) for c in (cfg, plain))
    assert np.abs(acted - 0.9).max() < 0.2 < np.abs(without - 0.9).max()


def policy_of(cfg: Config) -> np.ndarray:
    agent = load_agent(cfg.run_dir / "model.pt", device="cpu", mpc=False, task=STANDS)
    return agent.act(np.zeros(4, np.float32), eval_mode=True)


@pytest.mark.parametrize("keys", [{"share_body": True}, {"teachers": {"walker-run": "run.pt"}}], ids=str)
def test_demonstrations_of_some_tasks_go_with_keys_that_need_the_others(tmp_path: Path, keys: dict[str, Any]) -> None:
    """They were refused with words about a task set that nobody had typed."""
    logs = [(np.zeros((501, 24)), np.zeros((500, 6)), np.ones(500))]
    write_episodes(tmp_path / "shown", "walker-walk", logs, task_set="mt30")
    tasks = ["walker-walk", "walker-run"]
    shown = {"task": "mt30", "tasks": tasks, "mode": "online", "demonstrations": str(tmp_path / "shown")}
    assert demonstrations_problems(parse_cfg({**shown, **keys})) == []
