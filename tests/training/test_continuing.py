"""Runs that continue: exactly, with allowed changes, or not at all."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import CHANGEABLE, Config
from tdmpc2.data.chunks import read_chunk, write_chunk
from tdmpc2.loading import load_agent
from tdmpc2.training import run_dir, run_record
from tdmpc2.training.offline import train
from tests.helpers.runs import equal, rows, snapshot

pytestmark = pytest.mark.usefixtures("own_folder")


def test_train_of_finished_run_changes_nothing(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    path = train(cfg, None)
    before = snapshot(cfg.run_dir)
    capsys.readouterr()
    assert train(cfg, None) == path
    assert train(cfg.replace(steps=10), None) == path
    assert "is already trained for 20 steps; set steps higher" in capsys.readouterr().out
    assert snapshot(cfg.run_dir) == before


@pytest.mark.parametrize("taught", [False, True])
def test_train_continued_is_exact(
    cfg: Config, trained_teacher: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: bool
) -> None:
    # An agent this small has values whose range is too narrow to move the scale from 1.
    monkeypatch.setattr("tdmpc2.losses.updated_scale", lambda scale, value, tau: scale + tau * value.std())
    with_teacher = trained_teacher if taught else None
    straight = train(cfg, with_teacher)
    parts = cfg.replace(work_dir=str(tmp_path / "parts"))
    train(parts.replace(steps=7), with_teacher)
    resumed = train(parts, with_teacher)
    assert equal(straight, resumed)
    assert load_file(resumed).step == 20
    log, whole = rows(tmp_path / "parts" / "train.csv"), rows(cfg.run_dir / "train.csv")
    assert [row["step"] for row in log] == [5, 7, 10, 15, 20]
    assert [row for row in log if row["step"] != 7] == whole


def test_train_killed_continues_at_last_checkpoint(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_train_continued_with_allowed_changes_works(cfg: Config, data_dir: Path, tmp_path: Path) -> None:
    """Every key that may change is changed, and the weights equal those of a run without a break."""
    cfg = cfg.replace(compile="false")  # begun so, it goes on so; the other way round the rounding would differ
    straight = train(cfg, None)
    shutil.copytree(data_dir, tmp_path / "moved data")
    start = cfg.replace(work_dir=str(tmp_path / "there"), steps=10)
    train(start, None)
    shutil.move(tmp_path / "there", tmp_path / "here")
    changes = {
        "steps": 20, "work_dir": str(tmp_path / "here"), "data_dir": str(tmp_path / "moved data"),
        "exp_name": "renamed", "log_freq": 3, "save_freq": 4, "save_csv": False, "save_video": True, "mpc": False,
        "iterations": 3, "num_samples": 24, "num_elites": 6, "num_pi_trajs": 2, "min_std": 0.1, "max_std": 1.5,
        "plan_action": "mean", "plan_start": "policy",
        "temperature": 0.7, "precision": "bf16", "compile": "auto", "eval_freq": 1000, "eval_episodes": 1,
        "eval_noise": True, "eval_seed": 7, "compare": "other.pt", "episodes_per_task": 4,
        "data_device": "disk", "episodes_per_file": 7, "mix": ["1 random"],
        "distillation_cache": "lazy", "keep_last": 3, "save_best": False,
        "wandb_project": "p", "wandb_entity": "e", "wandb_silent": True, "disable_wandb": True,
        "teacher_score": 30.5, "control_score": 14.0, "env_workers": 2, "tracker": ("tensorboard",),
    }  # fmt: skip
    needed = {"device", "num_threads", "save_agent"}  # they depend on the machine, or are checked below
    files = {"teachers", "demonstrations"}  # may be moved but not replaced, as other tests check
    assert changes.keys() == CHANGEABLE - needed - files
    assert all(value != getattr(start, key) for key, value in changes.items())
    assert equal(train(start.replace(**changes), None), straight)


@pytest.mark.parametrize("lag", ["older", "missing"])
def test_train_rewrites_model_that_lags_behind_state(cfg: Config, lag: str) -> None:
    """The two files are written one after the other, so a kill may leave an older model.pt."""
    path = train(cfg.replace(steps=10), None)
    older = path.read_bytes()
    train(cfg, None)
    newest = path.read_bytes()
    path.write_bytes(older) if lag == "older" else path.unlink()
    assert train(cfg, None) == path  # also if nothing is left to train
    assert path.read_bytes() == newest


def test_train_over_weights_without_state_is_refused(cfg: Config) -> None:
    train(cfg, None)
    (cfg.run_dir / "state.pt").unlink()
    before = snapshot(cfg.run_dir)
    for steps in (20, 30):
        with pytest.raises(ValueError, match=r"has model\.pt but no state\.pt to continue from: set exp_name"):
            train(cfg.replace(steps=steps), None)
    assert snapshot(cfg.run_dir) == before


def test_continuing_with_other_data_is_refused_in_words(cfg: Config, data_dir: Path, tmp_path: Path) -> None:
    """The message used to print fingerprints of both data sets and leave finding the difference to the reader."""
    data = shutil.copytree(data_dir, tmp_path / "data")
    train(cfg.replace(steps=1), None)
    shutil.copy(data / "chunk_0.pt", data / "chunk_2.pt")
    before = snapshot(cfg.run_dir)
    chunk = read_chunk(data / "chunk_1.pt")
    (data / "chunk_1.pt").unlink()
    write_chunk(data / "chunk_1.pt", chunk["obs"] + 1, *(chunk[name] for name in ("action", "reward", "task")))
    assert (data / "chunk_1.pt").stat().st_size == (data_dir / "chunk_1.pt").stat().st_size
    with pytest.raises(ValueError, match="holds a run with other data") as error:
        train(cfg.replace(data_dir=str(data)), None)
    words = f"(data: chunk_1.pt has other episodes, chunk_2.pt is new [data_dir={data}])"
    assert words in str(error.value)
    with pytest.raises(ValueError, match=r"of another configuration \(data: chunk_1\.pt has .*; lr: 0.0003 there"):
        train(cfg.replace(data_dir=str(data), lr=0.1), None)
    assert snapshot(cfg.run_dir) == before


def test_agent_continued_on_other_device_seeds_generator_from_state(cfg: Config) -> None:
    """The generator's state has another size on another device, so it only seeds the new generator."""
    agents = [TDMPC2(cfg) for _ in range(3)]
    state = agents[0].training_state()
    for agent, byte in zip(agents, (1, 1, 2), strict=True):
        agent.load_training_state({**state, "generator": torch.full((16,), byte, dtype=torch.uint8)})
    first, same, other = (agent.act(torch.ones(24), t0=True, task=0) for agent in agents)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_kill_in_the_second_save_of_a_step_leaves_no_older_checkpoint(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may be saved twice, so its number does not tell whether model and state belong together."""
    agent = TDMPC2(cfg)
    run_dir.save(agent, cfg.run_dir, 7, None)
    state = (cfg.run_dir / "state.pt").read_bytes()
    with torch.no_grad():
        next(agent.model.parameters()).add_(1.0)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TDMPC2, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_dir.save(agent, cfg.run_dir, 7, None)
    assert (cfg.run_dir / "state.pt").read_bytes() == state  # so the run continues and writes both files
    run_dir.save(agent, cfg.run_dir, 7, None)
    weights = torch.load(cfg.run_dir / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in agent.model.state_dict().items())


def test_save_of_non_finite_weights_is_refused(cfg: Config) -> None:
    agent = TDMPC2(cfg)
    run_dir.save(agent, cfg.run_dir, 1, None)
    before = snapshot(cfg.run_dir)
    assert before.keys() == {"model.pt", "state.pt"}
    with torch.no_grad():
        agent.model._dynamics[1].bias[3] = float("nan")  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match=r"diverged: '_dynamics\.1\.bias' .* not finite at step 2\."):
        run_dir.save(agent, cfg.run_dir, 2, None)
    assert snapshot(cfg.run_dir) == before


def test_train_diverging_keeps_last_good_checkpoint(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    update, updates = TDMPC2.update, itertools.count(1)

    def diverging(agent: TDMPC2, batch: Any) -> dict[str, torch.Tensor]:
        if next(updates) == 4:  # as far too high learning rates do, in a step that depends on rounding
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
def test_train_continued_with_other_configuration_is_refused(cfg: Config, changes: dict[str, Any]) -> None:
    train(cfg.replace(steps=1), None)
    before = snapshot(cfg.run_dir)
    ((key, value),) = changes.items()
    with pytest.raises(ValueError, match="another configuration") as error:
        train(cfg.replace(**changes), None)
    shown = list(value) if isinstance(value, tuple) else value
    assert f"({key}: " in str(error.value)
    assert f" there, {shown} now)" in str(error.value)
    assert snapshot(cfg.run_dir) == before


def test_train_continued_names_all_differing_keys(cfg: Config, trained_teacher: Config) -> None:
    train(cfg.replace(steps=1), None)
    with pytest.raises(ValueError, match=r"lr: 0.0003 there, 0.1 now; rho: 0.5 there, 0.4 now; teacher_sha256: null"):
        train(cfg.replace(lr=0.1, rho=0.4), trained_teacher)


def test_train_over_checkpoint_without_record_is_refused(cfg: Config) -> None:
    cfg.run_dir.mkdir()
    (cfg.run_dir / "model.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"no run\.json"):
        train(cfg, None)
    assert snapshot(cfg.run_dir) == {"model.pt": b"precious"}


def test_continuing_with_another_size_names_what_was_typed(cfg: Config) -> None:
    """Seven widths that follow from the model size used to hide the one key that was typed."""
    first = cfg.replace(model_size=1, steps=1)
    first.run_dir.mkdir()
    run_record.claim(first.run_dir, run_record.check(first, None)[0])
    with pytest.raises(ValueError, match=r"of another configuration \(model_size: 1 there, 5 now\): set exp_name"):
        run_record.check(first.replace(model_size=5), None)
    with pytest.raises(
        ValueError, match=r"\(horizon: 3 there, 2 now; model_size: 1 there, null now; num_q: 2 there, 3"
    ):
        run_record.check(first.replace(model_size=None, num_q=3, horizon=2), None)
