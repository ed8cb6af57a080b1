"""Learning online in two processes gives what one process learns, up to rounding, in one set of files."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import parse_cfg
from tdmpc2.distributed import ProcessGroup
from tdmpc2.play.collector import collect
from tdmpc2.play.explorer import Explorer
from tdmpc2.training import online
from tdmpc2.training.online import train_online
from tdmpc2.training.ring import plan_ring
from tests.helpers.distributed import free_port, launched
from tests.helpers.online import config
from tests.helpers.runs import rows
from tests.helpers.toy_envs import FALLS, SEES, STANDS, ToyEnv

#: Environments that do not split evenly. Small errors change a policy's actions little, unlike a plan's.
POLICY: dict[str, Any] = {"num_envs": 3, "mpc": False, "steps": 60, "save_freq": 15}
RUNS: dict[str, dict[str, Any]] = {
    "policy": POLICY,
    "terminations": {**POLICY, "task": FALLS, "episodic": True, "horizon": 2},
    # An encoder that is fitted to images as alike as these has large gradients, and rounding errors grow with them.
    "images and numbers": {
        **POLICY,
        "task": SEES,
        "obs": "rgb+state",
        "fit_encoder": False,
        "num_envs": 2,
        "steps": 32,
    },
    # Hardly learns, so that what two processes fitted together can be compared.
    "fitted": {**POLICY, "task": SEES, "obs": "rgb+state", "num_envs": 2, "steps": 32, "lr": 1e-9},
    "several updates": {**POLICY, "utd": 1.4, "buffer_size": 40, "seed_actions": "pink"},
    "demonstrations": {**POLICY, "bc_coef": 1.0, "demonstrations": "shown"},
    "plans": {"num_envs": 2, "save_freq": 15, "eval_freq": 30, "eval_episodes": 2},
}
APART = ("plans", "fitted")  # that have tests of their own


def test_batch_that_does_not_split_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a batch used to be refused only at the first update, after the seed steps were played."""
    monkeypatch.setattr(online, "process_group", lambda device: nullcontext(ProcessGroup(0, 3)))
    cfg = config(tmp_path, batch_size=8)
    for keys in ({}, {"dry_run": True}):
        with pytest.raises(ValueError, match="batch_size=8"):
            train_online(cfg.replace(**keys), None)
    assert not cfg.run_dir.exists()


def stopped(directory: Path, rank: int) -> None:
    """Stop a run through one of its processes: all save at the same step, and the same command continues."""
    cfg = config(directory / "stopped", **RUNS["plans"])
    original, turns = Explorer.act, 0

    def act(self: Explorer, *args: Any, **kwargs: Any) -> Any:
        nonlocal turns
        turns += 1
        if rank == 1 and turns == 14:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args, **kwargs)

    Explorer.act = act  # type: ignore[method-assign]
    try:
        with pytest.raises(SystemExit) as ended:
            train_online(cfg, None)
    finally:
        Explorer.act = original  # type: ignore[method-assign]
    assert ended.value.code == 75
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if rank == 0:
        torch.save({"step": load_file(cfg.run_dir / "model.pt").step}, directory / "stopped.pt")
    train_online(cfg, None)


def failed(directory: Path, rank: int) -> None:
    """Let an environment of the other process fail: both report it, and the same command continues."""
    cfg = config(directory / "failed", **RUNS["plans"])
    original, turns = ToyEnv.step, 0

    def step(self: ToyEnv, action: Any) -> Any:
        nonlocal turns
        turns += 1
        if rank == 1 and turns == 17:
            raise RuntimeError("the arm is stuck")
        return original(self, action)

    ToyEnv.step = step  # type: ignore[method-assign]
    try:
        with pytest.raises(ValueError, match=r"environment 2 of 2: .*the arm is stuck .*the same command goes on"):
            train_online(cfg, None)
    finally:
        ToyEnv.step = original  # type: ignore[method-assign]
    train_online(cfg, None)


def scenarios(directory: Path) -> None:
    for name, keys in RUNS.items():
        shown = {"demonstrations": str(directory / "shown")} if "demonstrations" in keys else {}
        train_online(config(directory / name, **{**keys, **shown}), None)


def _one_of_two(rank: int, port: int, directory: str) -> None:
    os.environ.update(launched(rank, port))
    torch.set_num_threads(1)
    scenarios(Path(directory))
    stopped(Path(directory), rank)
    failed(Path(directory), rank)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the directories of runs of one process and of the same runs of two."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    for directory in (alone, two):
        collect(parse_cfg({"task": STANDS, "episodes_per_task": 6}), None, directory / "shown")
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [context.Process(target=_one_of_two, args=(rank, port, str(two))) for rank in (0, 1)]
    for process in processes:
        process.start()
    scenarios(alone)
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    return alone, two


def close(one: Path, two: Path) -> bool:
    first, second = (load_file(path / "run" / "model.pt") for path in (one, two))
    return first.step == second.step and all(
        torch.allclose(x, second.model[name], rtol=0, atol=2e-5) for name, x in first.model.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in APART])
def test_online_run_of_two_processes_equals_that_of_one(both: tuple[Path, Path], name: str) -> None:
    """Episodes, their order, losses and weights are the same up to rounding."""
    alone, two = (directory / name for directory in both)
    for file in ("episodes.csv", "train.csv"):
        one, other = (rows_of(directory / "run" / file) for directory in (alone, two))
        assert len(one) == len(other) > 2
        for row, expected in zip(other, one, strict=True):
            assert row == pytest.approx(expected, abs=1e-4)
    assert close(alone, two)


@pytest.mark.slow
def test_encoder_that_two_processes_fit_is_that_of_one(both: tuple[Path, Path]) -> None:
    """Relative to its weights, of which some are a hundred times what they were."""
    one, other = (state_of(directory / "fitted")["weights"] for directory in both)
    names = [name for name in one if name.startswith("_encoder.rgb.")]
    assert names
    for name in names:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5)


def rows_of(path: Path) -> list[dict[str, float]]:
    """Read the numbers of a log, without names and times."""
    lines = path.read_text().splitlines()
    head = lines[0].split(",")
    table = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    return [{k: float(v) for k, v in row.items() if k != "task"} for row in table]


def state_of(directory: Path) -> dict[str, Any]:
    return torch.load(directory / "run" / "state.pt", weights_only=True)


@pytest.mark.slow
def test_planned_run_of_two_processes_plays_as_many_episodes(both: tuple[Path, Path]) -> None:
    """Rounding may change a plan and all that follows, so only counts are compared."""
    counts = [[len(rows_of(path / "plans" / "run" / file)) for file in ("episodes.csv", "train.csv")] for path in both]
    assert counts[0] == counts[1]
    assert [state_of(path / "plans")["parts"]["learner"]["done"] for path in both] == [45, 45]
    assert [len(rows(path / "plans" / "run" / "eval.csv")) for path in both] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stopped", "failed"])
def test_two_processes_go_on_after_one_was_told_to_stop_or_failed(both: tuple[Path, Path], name: str) -> None:
    """A stopped run ends with the same bits as an unstopped one; a failed environment begins a new episode."""
    two = both[1]
    state, straight = state_of(two / name), state_of(two / "plans")
    assert state["step"] == straight["step"]
    same = all(torch.equal(x, straight["weights"][key]) for key, x in state["weights"].items())
    assert same == (name == "stopped")
    if name == "stopped":
        assert 28 <= torch.load(two / "stopped.pt", weights_only=True)["step"] < 46


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_have_left(both: tuple[Path, Path], tmp_path: Path) -> None:
    """Two processes save the episodes, plans and buffer of all environments, whoever played them."""
    shutil.copytree(both[1] / "policy" / "run", tmp_path / "run")
    longer = {**POLICY, "steps": 90}
    train_online(config(tmp_path, **longer), None)
    train_online(config(both[0] / "longer", **longer), None)
    assert close(tmp_path, both[0] / "longer")


def test_more_processes_than_environments_are_refused() -> None:
    cfg = config(Path("x"))
    with pytest.raises(ValueError, match="num_envs=1: 1 environments in all cannot be split over 2 processes: set num"):
        Explorer(cfg, TDMPC2(cfg), ProcessGroup(0, 2))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_part_of_things_leaves_none_out(count: int) -> None:
    parts = [range(count)[ProcessGroup(rank, 2).part(count)] for rank in (0, 1)]
    assert [*parts[0], *parts[1]] == list(range(count))
    assert abs(len(parts[0]) - len(parts[1])) <= 1


def test_processes_of_one_machine_have_room_for_a_buffer_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a process was its share already, and was divided by their number once more."""
    cfg = config(tmp_path, save_agent=False)
    size = plan_ring(cfg, torch.device("cpu")).bytes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("tdmpc2.data.placement.available_memory", lambda _: 2 * size)
    group: Any = SimpleNamespace(world_size=4, main=True, collect=lambda value: [value])
    assert plan_ring(cfg, torch.device("cpu"), group).place == "cpu"
