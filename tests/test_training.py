"""Offline training on data from the real collector: learning, files, continuing, teachers, refusals."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256, load_file
from tdmpc2.config import RUN_KEYS, Config, key_names, parse_cfg
from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.data.dataset import EpisodeDataset, SliceSampler
from tdmpc2.data.store.selection import chunk_fingerprints
from tdmpc2.distillation.outputs import check_teacher
from tdmpc2.loading import load_agent
from tdmpc2.play.collector import collect
from tdmpc2.training import run_dir
from tdmpc2.training.offline import train
from tdmpc2.training.run_dir import CHANGEABLE

from .conftest import TASKS, TINY
from .test_rollout import by_hand
from .toy_envs import FALLS, STANDS, STANDS_FOR


@pytest.fixture(scope="session")
def teacher(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A trained teacher, wider than the student."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    wider = {"latent_dim": 24, "num_q": 3, "seed": 5}
    return Config(checkpoint=str(train(Config(data_dir=str(data_dir), work_dir=str(run), **{**TINY, **wider}), None)))


def weights(path: Path | str) -> dict[str, torch.Tensor]:
    return load_file(path).model


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


# Collecting


def test_chunks_hold_what_was_played(data_dir: Path) -> None:
    """The actions of a file, played again in an environment of the file's seed, give its observations and rewards."""
    cfg = Config(tasks=TASKS, episodes_per_task=3)
    assert sorted(path.name for path in data_dir.glob("chunk*")) == ["chunk_0.pt", "chunk_1.pt"]
    for number, task_id in enumerate(cfg.task_ids):
        spec = cfg.task_specs[task_id]
        chunk = read_chunk(data_dir / f"chunk_{number}.pt")
        assert chunk["obs"].shape == (3, 501, 24)
        assert (chunk["task"] == task_id).all()
        assert (chunk["action"][:, 1:, spec.action_dim :] == 0).all()
        assert len(chunk["obs"][:, 0].unique(dim=0)) == 3  # every episode has its own seed
        seed = int(np.random.SeedSequence((cfg.seed, number)).generate_state(2)[1])
        observations, rewards, *_ = by_hand(spec, seed, list(chunk["action"][0, 1:].numpy()))
        np.testing.assert_array_equal(chunk["obs"][0, :, : spec.obs_dim], observations)
        np.testing.assert_array_equal(chunk["reward"][0, 1:], rewards.astype(np.float32))


def test_collecting_again_adds_other_episodes(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    before = snapshot(tmp_path / "data")
    del before["collect.json"]  # to which a line is added
    cfg = Config(tasks=("pendulum-spin",), episodes_per_task=1)
    returns: dict[str, np.ndarray] = {}
    paths = collect(cfg, None, tmp_path / "data", lambda shard, values: returns.update({shard.task: values}))
    assert [path.name for path in paths] == ["chunk_2.pt"]
    assert snapshot(tmp_path / "data").items() > before.items()
    new, old = read_chunk(paths[0]), read_chunk(tmp_path / "data" / "chunk_0.pt")
    assert not (new["obs"][0, 0] == old["obs"][:, 0]).all(1).any()
    assert returns["pendulum-spin"] == pytest.approx(new["reward"][:, 1:].sum(1).numpy(), rel=1e-4)
    assert collect(cfg, None, tmp_path / "other")[0].read_bytes() != paths[0].read_bytes()


def test_a_chunk_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    cfg = parse_cfg({"task": STANDS, "episodes_per_task": 20})
    (first,), (same,) = (collect(cfg, None, tmp_path / name) for name in "ab")
    (other,) = collect(cfg.replace(seed=2**31 - 1), None, tmp_path / "c")
    assert first.read_bytes() == same.read_bytes()
    assert (read_chunk(first)["obs"][0, 0] != read_chunk(other)["obs"][0, 0]).any()
    assert read_chunk(first)["obs"].shape == (20, STANDS_FOR + 1, 4)


def test_an_agent_collects_with_noise(tmp_path: Path) -> None:
    cfg = parse_cfg({"task": STANDS, "episodes_per_task": 4, **{k: v for k, v in TINY.items() if k != "tasks"}})
    agent = TDMPC2(cfg)
    (first,), (same,) = (collect(cfg, agent, tmp_path / name) for name in "ab")
    assert first.read_bytes() == same.read_bytes()
    assert read_chunk(first)["action"][:, 1:].abs().max() <= 1


def test_episodes_that_end_early_are_not_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ended after 3 of 9 steps \(seed \d+\)"):
        collect(parse_cfg({"task": FALLS, "episodes_per_task": 2}), None, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*chunk*"))


def test_long_tasks_of_mt80_are_cut(tmp_path: Path) -> None:
    (path,) = collect(Config(task="mt80", tasks=("pendulum-spin",), episodes_per_task=2), None, tmp_path)
    assert read_chunk(path)["obs"].shape == (2, 101, 39)


# Learning


def test_losses_go_down(cfg: Config) -> None:
    train(cfg.replace(steps=200, log_freq=1, lr=1e-3, batch_size=64), None)
    log = rows(cfg.run_dir / "train.csv")
    assert [row["step"] for row in log] == list(range(1, 201))
    for name in ("total_loss", "reward_loss", "value_loss"):
        values = [row[name] for row in log]
        assert np.mean(values[-20:]) < 0.9 * np.mean(values[:20]), name
    assert all(np.isfinite(list(row.values())).all() for row in log)
    assert "distillation_loss" not in log[0]


def test_files_of_a_run(cfg: Config) -> None:
    path = train(cfg, None)
    assert path == cfg.run_dir / "model.pt"
    names = ["model.pt", "run.json", "speed.csv", "state.pt", "train.csv"]
    assert sorted(p.name for p in cfg.run_dir.iterdir()) == names
    record = json.loads((cfg.run_dir / "run.json").read_text())
    assert record.pop("teacher_sha256") is None
    assert record.pop("data") == chunk_fingerprints(cfg.data_dir)
    assert Config(**record) == cfg
    stored = load_file(path)
    assert stored.step == 20
    assert stored.config is not None
    assert stored.config.keys() == {*key_names(), "task_specs"} - RUN_KEYS  # the agent, not where and how it was made
    agent = load_agent(path, device="cpu")
    assert agent.cfg.tasks == TASKS  # evaluated on what it was trained on
    assert agent.cfg.replace(**{key: getattr(cfg, key) for key in ("data_dir", "work_dir", "steps", "batch_size",
        "log_freq", "eval_freq", "num_threads")}) == cfg  # fmt: skip
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")] == [5, 10, 15, 20]


def test_what_is_asked_of_a_file(cfg: Config) -> None:
    path = train(cfg.replace(steps=1), None)
    for task, expected in (("mt30", None), ("cup-spin", ("cup-spin",)), (None, TASKS)):
        assert load_agent(path, device="cpu", **({"task": task} if task else {})).cfg.tasks == expected
    agent = load_agent(path, device="cpu", num_samples=12, seed=9)
    assert (agent.cfg.num_samples, agent.cfg.seed, agent.cfg.num_elites) == (12, 9, 4)
    with pytest.raises(ValueError, match=r"Unknown key 'num_sample' in the overrides. Did you mean 'num_samples'\?"):
        load_agent(path, device="cpu", num_sample=12)


def test_the_seed_decides_the_weights(cfg: Config, tmp_path: Path) -> None:
    first = train(cfg, None)
    second = train(cfg.replace(work_dir=str(tmp_path / "same")), None)
    other = train(cfg.replace(work_dir=str(tmp_path / "other"), seed=2), None)
    assert equal(first, second)
    assert not equal(first, other)


def test_evaluation_while_training_does_not_change_it(cfg: Config, tmp_path: Path) -> None:
    cfg = cfg.replace(steps=6, tasks=("pendulum-spin",), mpc=False, eval_episodes=2)
    quiet = train(cfg, None)
    watched = train(cfg.replace(work_dir=str(tmp_path / "watched"), eval_freq=4), None)
    assert equal(quiet, watched)
    log = rows(tmp_path / "watched" / "eval.csv")
    assert [row["step"] for row in log] == [4]
    assert all(row["low"] <= row["normalized_score"] <= row["high"] for row in log)
    table = (tmp_path / "watched" / "eval_tasks.csv").read_text().splitlines()
    assert table[0] == "step,task,episodes,return,success"
    assert table[1].startswith("4,pendulum-spin,2,")


def test_a_failing_evaluation_does_not_lose_the_checkpoint(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(cfg.replace(work_dir=str(tmp_path / "straight"), steps=8), None)
    cfg = cfg.replace(steps=8, eval_freq=4, save_freq=4)
    monkeypatch.setattr("tdmpc2.training.offline.evaluate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(cfg, None)
    assert load_file(cfg.run_dir / "model.pt").step == 4
    assert equal(train(cfg.replace(eval_freq=0), None), straight)


def test_videos_of_evaluations(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    keys = {**TINY, "task": STANDS, "tasks": None, "steps": 2, "eval_freq": 2, "horizon": 2, "episodes_per_task": 2}
    cfg = parse_cfg({**keys, "data_dir": tmp_path / "data", "work_dir": tmp_path / "run", "save_video": True})
    collect(cfg, None, Path(cfg.data_dir))
    train(cfg, None)
    assert [path.name for path in (cfg.run_dir / "videos").iterdir()] == [f"{STANDS}-2.mp4"]


def test_without_saving_there_is_no_checkpoint(cfg: Config) -> None:
    train(cfg.replace(save_agent=False, save_csv=False), None)
    assert [path.name for path in cfg.run_dir.iterdir()] == ["run.json"]


# Continuing


def test_a_finished_run_is_left_alone(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    path = train(cfg, None)
    before = snapshot(cfg.run_dir)
    capsys.readouterr()
    assert train(cfg, None) == path
    assert train(cfg.replace(steps=10), None) == path
    assert "is already trained for 20 steps; set student_config.steps higher" in capsys.readouterr().out
    assert snapshot(cfg.run_dir) == before


@pytest.mark.parametrize("taught", [False, True])
def test_continuing_is_exact(
    cfg: Config, teacher: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: bool
) -> None:
    # Values of so small an agent never reach the range at which the scale leaves 1.
    monkeypatch.setattr("tdmpc2.losses.updated_scale", lambda scale, value, tau: scale + tau * value.std())
    with_teacher = teacher if taught else None
    straight = train(cfg, with_teacher)
    parts = cfg.replace(work_dir=str(tmp_path / "parts"))
    train(parts.replace(steps=7), with_teacher)
    resumed = train(parts, with_teacher)
    assert equal(straight, resumed)
    assert load_file(resumed).step == 20
    log, whole = rows(tmp_path / "parts" / "train.csv"), rows(cfg.run_dir / "train.csv")
    assert [row["step"] for row in log] == [5, 7, 10, 15, 20]
    assert [row for row in log if row["step"] != 7] == whole


def test_a_killed_run_continues_at_its_last_checkpoint(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(cfg.replace(work_dir=str(cfg.run_dir) + "-straight"), None)
    cfg = cfg.replace(save_freq=6, log_freq=1)
    updates: list[int] = []
    update = TDMPC2.update

    def killed(self: TDMPC2, *args: Any) -> Any:
        if len(updates) == 9:
            raise KeyboardInterrupt
        updates.append(1)
        return update(self, *args)

    monkeypatch.setattr(TDMPC2, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, None)
    monkeypatch.undo()
    assert load_file(cfg.run_dir / "model.pt").step == 6
    assert equal(train(cfg, None), straight)
    assert [row["step"] for row in rows(cfg.run_dir / "train.csv")] == list(range(1, 21))


def test_what_may_change_when_continuing(cfg: Config, data_dir: Path, tmp_path: Path) -> None:
    """Everything that may change does, and the weights are still those of a run without a break."""
    straight = train(cfg, None)
    shutil.copytree(data_dir, tmp_path / "moved data")
    start = cfg.replace(work_dir=str(tmp_path / "there"), steps=10)
    train(start, None)
    shutil.move(tmp_path / "there", tmp_path / "here")
    changes = {
        "steps": 20, "work_dir": str(tmp_path / "here"), "data_dir": str(tmp_path / "moved data"),
        "exp_name": "renamed", "log_freq": 3, "save_freq": 4, "save_csv": False, "save_video": True, "mpc": False,
        "iterations": 3, "num_samples": 24, "num_elites": 6, "num_pi_trajs": 2, "min_std": 0.1, "max_std": 1.5,
        "temperature": 0.7, "precision": "bf16", "compile": False, "eval_freq": 1000, "eval_episodes": 1,
        "eval_noise": True, "eval_seed": 7, "compare": "other.pt", "episodes_per_task": 4, "buffer_size": 10,
        "data_device": "disk", "episodes_per_file": 7, "mix": ["1 random"],
        "distillation_cache": "lazy", "keep_last": 3, "save_best": False,
        "wandb_project": "p", "wandb_entity": "e", "wandb_silent": True, "disable_wandb": True,
        "teacher_score": 30.5, "control_score": 14.0,
    }  # fmt: skip
    needed = {"device", "num_threads", "save_agent"}  # this machine's, and what is looked at below
    assert changes.keys() == CHANGEABLE - needed
    assert all(value != getattr(start, key) for key, value in changes.items())
    assert equal(train(start.replace(**changes), None), straight)


@pytest.mark.parametrize("lag", ["older", "missing"])
def test_a_model_that_lags_behind_the_state_is_written_again(cfg: Config, lag: str) -> None:
    """The two files are written one after the other, and a kill can come between."""
    path = train(cfg.replace(steps=10), None)
    older = path.read_bytes()
    train(cfg, None)
    newest = path.read_bytes()
    path.write_bytes(older) if lag == "older" else path.unlink()
    assert train(cfg, None) == path  # also where nothing is left to train
    assert path.read_bytes() == newest


def test_weights_without_their_state_are_not_replaced(cfg: Config) -> None:
    train(cfg, None)
    (cfg.run_dir / "state.pt").unlink()
    before = snapshot(cfg.run_dir)
    for steps in (20, 30):
        with pytest.raises(ValueError, match=r"has model\.pt but no state\.pt to continue from: set exp_name"):
            train(cfg.replace(steps=steps), None)
    assert snapshot(cfg.run_dir) == before


def test_other_data_is_refused(cfg: Config, data_dir: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_dir, tmp_path / "data")
    train(cfg.replace(steps=1), None)
    shutil.copy(data / "chunk_0.pt", data / "chunk_2.pt")
    before = snapshot(cfg.run_dir)
    chunk = read_chunk(data / "chunk_1.pt")
    (data / "chunk_1.pt").unlink()
    write_chunk(data / "chunk_1.pt", chunk["obs"] + 1, *(chunk[name] for name in ("action", "reward", "task")))
    assert (data / "chunk_1.pt").stat().st_size == (data_dir / "chunk_1.pt").stat().st_size
    with pytest.raises(ValueError, match=r"another configuration \(data: .*'chunk_1\.pt'"):
        train(cfg.replace(data_dir=str(data)), None)
    with pytest.raises(ValueError, match=r"another configuration \(data: .*'chunk_2\.pt': '\d+-\w+'.* now\)"):
        train(cfg.replace(data_dir=str(data)), None)
    assert snapshot(cfg.run_dir) == before


def test_continuing_on_another_kind_of_device(cfg: Config) -> None:
    """Its generator's state is of another size: the draws differ from then on, but are still a function of it."""
    agents = [TDMPC2(cfg) for _ in range(3)]
    state = agents[0].training_state()
    for agent, byte in zip(agents, (1, 1, 2), strict=True):
        agent.load_training_state({**state, "generator": torch.full((16,), byte, dtype=torch.uint8)})
    first, same, other = (agent.act(torch.ones(24), t0=True, task=0) for agent in agents)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_weights_that_are_not_finite_are_not_saved(cfg: Config) -> None:
    agent = TDMPC2(cfg)
    run_dir.save(agent, cfg.run_dir, 1, None)
    before = snapshot(cfg.run_dir)
    assert before.keys() == {"model.pt", "state.pt"}
    with torch.no_grad():
        agent.model._dynamics[1].bias[3] = float("nan")  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match=r"diverged: '_dynamics\.1\.bias' .* not finite at step 2\."):
        run_dir.save(agent, cfg.run_dir, 2, None)
    assert snapshot(cfg.run_dir) == before


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    update, updates = TDMPC2.update, itertools.count(1)

    def diverging(agent: TDMPC2, batch: Any) -> dict[str, torch.Tensor]:
        if next(updates) == 4:  # a learning rate that is far too high does this, but in which step depends on rounding
            with torch.no_grad():
                agent.model._dynamics[1].bias.fill_(float("inf"))  # type: ignore[union-attr,operator]
        return update(agent, batch)

    monkeypatch.setattr(TDMPC2, "update", diverging)
    with pytest.raises(ValueError, match=r"Training diverged: .* not finite at step 4\..* is of step 3, before it"):
        train(cfg.replace(save_freq=1), None)
    assert load_file(cfg.run_dir / "model.pt").step == 3
    for weight in load_agent(cfg.run_dir / "model.pt", device="cpu").model.parameters():
        assert bool(weight.isfinite().all())


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"batch_size": 8}, {"lr": 1e-4}, {"latent_dim": 8}, {"tasks": ("pendulum-spin",)}, {"horizon": 2}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_configuration_is_refused(cfg: Config, changes: dict[str, Any]) -> None:
    train(cfg.replace(steps=1), None)
    before = snapshot(cfg.run_dir)
    ((key, value),) = changes.items()
    with pytest.raises(ValueError, match="another configuration") as error:
        train(cfg.replace(**changes), None)
    shown = list(value) if isinstance(value, tuple) else value
    assert f"({key}: " in str(error.value)
    assert f" there, {shown} now)" in str(error.value)
    assert snapshot(cfg.run_dir) == before


def test_all_differing_keys_are_named(cfg: Config, teacher: Config) -> None:
    train(cfg.replace(steps=1), None)
    with pytest.raises(ValueError, match=r"lr: 0.0003 there, 0.1 now; rho: 0.5 there, 0.4 now; teacher_sha256: None"):
        train(cfg.replace(lr=0.1, rho=0.4), teacher)


def test_checkpoints_without_a_record_are_not_replaced(cfg: Config) -> None:
    cfg.run_dir.mkdir()
    (cfg.run_dir / "model.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"no run\.json"):
        train(cfg, None)
    assert snapshot(cfg.run_dir) == {"model.pt": b"precious"}


# Teachers and given weights


def test_distillation(cfg: Config, teacher: Config, tmp_path: Path) -> None:
    assert teacher.checkpoint is not None
    before = Path(teacher.checkpoint).read_bytes()
    path = train(cfg, teacher)
    log = rows(cfg.run_dir / "train.csv")
    assert all(row["distillation_loss"] > 0 for row in log)
    assert json.loads((cfg.run_dir / "run.json").read_text())["teacher_sha256"] == file_sha256(teacher.checkpoint)
    assert not equal(path, train(cfg.replace(work_dir=str(tmp_path / "alone")), None))
    assert Path(teacher.checkpoint).read_bytes() == before
    assert weights(path)["_encoder.state.1.weight"].shape[0] == 16  # the student's own width


def test_weight_zero_is_no_distillation(cfg: Config, teacher: Config, tmp_path: Path) -> None:
    alone = train(cfg, None)
    taught = train(cfg.replace(work_dir=str(tmp_path / "taught"), distillation_weight=0), teacher)
    assert equal(alone, taught)


def test_the_teachers_architecture_is_the_files(cfg: Config, teacher: Config) -> None:
    train(cfg.replace(steps=1), teacher.replace(model_size=317))
    assert load_file(cfg.run_dir / "model.pt").step == 1


def test_teacher_of_another_task_set(cfg: Config, tmp_path: Path) -> None:
    single = parse_cfg({"task": "cup-spin", **{k: v for k, v in TINY.items() if k != "tasks"}})
    TDMPC2(single).save(tmp_path / "single.pt")
    with pytest.raises(ValueError, match=r"student task=mt30 \(30 tasks\), teacher task=cup-spin \(1 tasks\).*id 0"):
        train(cfg, Config(checkpoint=str(tmp_path / "single.pt")))
    assert not cfg.run_dir.exists()
    with pytest.raises(ValueError, match="different task sets"):
        check_teacher(Config(), parse_cfg({"task": "mt80"}))
    check_teacher(Config(tasks=TASKS), Config(model_size=5))


def test_single_task_teacher_that_does_not_name_its_task(tmp_path: Path) -> None:
    """A file of another code base holds bare weights; teacher_config.task says what they play."""
    keys = {**TINY, "task": STANDS, "tasks": None, "steps": 1, "horizon": 2, "episodes_per_task": 2}
    cfg = parse_cfg({**keys, "data_dir": tmp_path / "data", "work_dir": tmp_path / "run"})
    collect(cfg, None, Path(cfg.data_dir))
    torch.save({"model": TDMPC2(cfg).model.state_dict()}, tmp_path / "legacy.pt")
    train(cfg, parse_cfg({"task": STANDS, "checkpoint": tmp_path / "legacy.pt"}))
    assert "distillation_loss" in rows(cfg.run_dir / "train.csv")[0]


def test_starting_from_given_weights(cfg: Config, teacher: Config, tmp_path: Path) -> None:
    first = train(cfg, None)
    start = cfg.replace(work_dir=str(tmp_path / "next"), checkpoint=str(first), lr=0, steps=1, tau=0)
    assert equal(train(start, None), first)
    with pytest.raises(ValueError, match="latent_dim 24 instead of 16"):
        train(start.replace(checkpoint=teacher.checkpoint, work_dir=str(tmp_path / "wide")), None)
    assert not (tmp_path / "wide").exists()


# Refusals


def broken(data_dir: Path, to: Path, name: str, index: tuple[int, ...], value: float) -> Path:
    """A copy of the data with one value of chunk 1 changed, in the file only."""
    to.mkdir()
    shutil.copy(data_dir / "chunk_0.pt", to)
    chunk = read_chunk(data_dir / "chunk_1.pt")
    chunk[name] = chunk[name].clone()
    marker = 123456.0
    chunk[name][index] = marker
    write_chunk(to / "chunk_1.pt", **chunk)
    content = (to / "chunk_1.pt").read_bytes()
    needle, patch = np.float32(marker).tobytes(), np.float32(value).tobytes()
    assert content.count(needle) == 1
    (to / "chunk_1.pt").write_bytes(content.replace(needle, patch))
    return to


@pytest.mark.parametrize(
    ("name", "index"),
    [("obs", (1, 0, 3)), ("action", (2, 17, 0)), ("reward", (0, 500))],
    ids=["obs", "action", "reward"],
)
def test_nan_in_a_used_row(cfg: Config, data_dir: Path, tmp_path: Path, name: str, index: tuple[int, ...]) -> None:
    bad = broken(data_dir, tmp_path / "bad", name, index, float("nan"))
    episode, row = index[:2]
    with pytest.raises(ValueError, match=rf"chunk_1\.pt: {name} is nan in episode {episode}, row {row}"):
        train(cfg.replace(data_dir=str(bad)), None)
    assert not cfg.run_dir.exists()


def test_data_errors_leave_the_directory_free(cfg: Config, tmp_path: Path) -> None:
    """After a mistake the corrected command is not taken for another run."""
    with pytest.raises(ValueError, match="cup-spin"):
        train(cfg.replace(tasks=("cup-spin",)), None)
    assert not cfg.run_dir.exists()
    train(cfg.replace(steps=1), None)


def test_everything_missing_is_listed_at_once(cfg: Config, tmp_path: Path) -> None:
    nowhere = {"data_dir": str(tmp_path / "none"), "checkpoint": str(tmp_path / "start.pt")}
    with pytest.raises(ValueError, match="something is missing") as error:
        train(cfg.replace(**nowhere), Config(checkpoint=None))
    text = str(error.value)
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == [
        "data", "teacher", "weights to start from",
    ]  # fmt: skip
    assert "python collect.py" in text
    assert "teacher_config=null" in text
    assert not cfg.run_dir.exists()


def test_evaluations_that_could_not_be_played_are_refused(
    cfg: Config, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**TINY, "task": "mt80", "tasks": ("mw-reach",), "data_dir": str(data_dir), "eval_freq": 2}
    with pytest.raises(
        ValueError, match=r"evaluation: Task 'mw-reach'.*\(student_config\.eval_freq=0 trains without\)"
    ):
        train(Config(**keys), None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"evaluation: save_video needs imageio"):
        train(cfg.replace(eval_freq=2, save_video=True), None)
    assert not cfg.run_dir.exists()
    train(cfg.replace(steps=1, eval_freq=2, save_video=True), None)  # none would be played


def test_data_of_other_lengths(cfg: Config, tmp_path: Path) -> None:
    short = parse_cfg({"task": STANDS, "episodes_per_task": 2})
    collect(short, None, tmp_path / "short")
    with pytest.raises(ValueError, match="episodes of length 7, but the task set has 500"):
        train(cfg.replace(data_dir=str(tmp_path / "short")), None)


def test_an_agent_loaded_to_act_does_not_train(cfg: Config, data_dir: Path, tmp_path: Path) -> None:
    TDMPC2(cfg).save(tmp_path / "x.pt")
    agent = load_agent(tmp_path / "x.pt", device="cpu", precision="bf16")
    data = EpisodeDataset.load(data_dir, cfg.task_specs, cfg.task_ids)
    with pytest.raises(ValueError, match="use precision='fp32' to train"):
        agent.update(SliceSampler(data).sample(0, 4, 3, 0))
    with pytest.raises(ValueError, match="use precision='fp32' to save"):
        agent.save(tmp_path / "y.pt")
    assert not (tmp_path / "y.pt").exists()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written to where the tests were started."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert not list((tmp_path / "cwd").iterdir())
