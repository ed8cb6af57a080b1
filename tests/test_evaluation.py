"""Scores, intervals, comparisons, result files and videos."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.envs.rendering import context_module
from tdmpc2.play import results
from tdmpc2.play.evaluation import (
    Evaluation,
    TaskResult,
    _rank_seed,
    bootstrap,
    compare,
    evaluate,
    num_steps,
    side_by_side,
)
from tdmpc2.play.mixture import random_actor
from tdmpc2.play.rollout import Frames, Job, play
from tdmpc2.tasks import lookup

from .conftest import shared_file
from .toy_envs import FALLS, STANDS, STANDS_FOR, ToyEnv

TINY: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_samples": 16, "num_elites": 4,
    "num_pi_trajs": 4, "iterations": 1, "device": "cpu",
}  # fmt: skip

episode_scores = st.lists(st.floats(0, 1000), min_size=2, max_size=12)


def fake(*tasks: tuple[str, list[float], list[float]], seed: int = 100) -> Evaluation:
    """Results from (task, returns, successes)."""
    return Evaluation(
        tuple(
            TaskResult(
                name, tuple(range(seed, seed + len(returns))), tuple(returns), tuple(successes),
                lookup(name).success_score,
            )
            for name, returns, successes in tasks
        )
    )  # fmt: skip


MIXED = fake(("walker-walk", [500.0, 700.0], [0.0, 0.0]), ("mw-reach", [1234.0, 17.0], [1.0, 0.0]))


# Scores


def test_scores() -> None:
    walker, reach = MIXED.tasks
    np.testing.assert_array_equal(walker.scores, [50, 70])  # return / 10
    np.testing.assert_array_equal(reach.scores, [100, 0])  # 100 x success; the return does not count
    assert MIXED.normalized_score == pytest.approx((60 + 50) / 2)


def test_every_task_weighs_the_same() -> None:
    result = fake(("walker-walk", [1000.0] * 9, [0.0] * 9), ("cup-spin", [0.0], [0.0]))
    assert result.normalized_score == pytest.approx(50)


def test_published_returns_give_the_published_score() -> None:
    with shared_file("golden/published_fp16_returns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    returns = {row.pop("task"): [float(value) for value in row.values()] for row in rows}
    result = fake(*((task, values, [0.0] * len(values)) for task, values in returns.items()))
    assert result.normalized_score == pytest.approx(30.7, abs=0.05)
    low, high = result.interval or (0, 0)
    assert (low, high) == (pytest.approx(26.9, abs=1), pytest.approx(34.2, abs=1))


# The bootstrap


@given(samples=st.lists(episode_scores, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_interval_is_ordered_bounded_and_holds_the_mean(samples: list[list[float]]) -> None:
    arrays = [np.array(sample) for sample in samples]
    low, high = bootstrap(arrays) or (np.inf, -np.inf)
    mean, slack = np.mean([sample.mean() for sample in arrays]), 1e-9 * (1 + max(map(np.max, arrays)))
    assert low <= high
    assert np.mean([sample.min() for sample in arrays]) - slack <= low
    assert high <= np.mean([sample.max() for sample in arrays]) + slack
    spread = max(np.ptp(sample) for sample in arrays)
    assert low - 0.1 * spread - slack <= mean <= high + 0.1 * spread + slack


@given(sample=episode_scores, shift=st.floats(-100, 100), factor=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_interval_moves_with_the_scores(sample: list[float], shift: float, factor: float) -> None:
    before = np.array(bootstrap([np.array(sample)]))
    after = np.array(bootstrap([factor * np.array(sample) + shift]))
    np.testing.assert_allclose(after, factor * before + shift, rtol=1e-9, atol=1e-6)


def test_interval_of_known_data() -> None:
    """For the mean of n normal values it is close to 1.96 standard errors on either side."""
    sample = np.random.default_rng(0).normal(50, 10, 400)
    low, high = bootstrap([sample]) or (0, 0)
    error = 1.96 * sample.std() / 20
    assert low == pytest.approx(sample.mean() - error, abs=0.05)
    assert high == pytest.approx(sample.mean() + error, abs=0.05)
    low, high = bootstrap([sample, sample]) or (0, 0)
    assert high - low == pytest.approx(2 * error / np.sqrt(2), abs=0.05)  # tasks are resampled on their own


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap([rng.normal(0, 1, 30)], seed=i) or (0, 0) for i in range(200)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.98


def test_interval_is_deterministic_and_unknown_for_one_episode() -> None:
    samples = [np.random.default_rng(0).normal(size=10), np.array([0.0, 3.0])]
    assert bootstrap(samples) == bootstrap(samples)
    assert bootstrap(samples) != bootstrap(samples, seed=1)
    assert bootstrap([*samples, np.array([3.0])]) is None
    assert fake(("cup-spin", [3.0], [0.0])).interval is None
    assert bootstrap([np.full(5, 7.0)]) == (7, 7)


# Comparison


def test_comparison_is_paired() -> None:
    """Episodes of one seed are alike: a constant difference of 50 is certain, however much the episodes differ."""
    first = fake(("walker-walk", [900.0, 100.0, 500.0], [0.0] * 3))
    second = fake(("walker-walk", [850.0, 50.0, 450.0], [0.0] * 3))
    difference, interval = compare(first, second)
    assert difference == pytest.approx(5)
    assert interval == (pytest.approx(5), pytest.approx(5))
    assert compare(second, first)[0] == pytest.approx(-5)


def test_comparison_of_successes() -> None:
    first = fake(("mw-reach", [0.0, 0.0], [1.0, 1.0]))
    second = fake(("mw-reach", [9.0, 9.0], [1.0, 0.0]))
    assert compare(first, second) == (50, (0, 100))


@pytest.mark.parametrize(
    "other",
    [
        fake(("walker-run", [1.0, 2.0], [0.0, 0.0])),
        fake(("walker-walk", [1.0, 2.0], [0.0, 0.0]), seed=7),
        fake(("walker-walk", [1.0], [0.0])),
        MIXED,
    ],
)
def test_only_the_same_episodes_compare(other: Evaluation) -> None:
    with pytest.raises(ValueError, match="same tasks and seeds"):
        compare(fake(("walker-walk", [1.0, 2.0], [0.0, 0.0])), other)


def test_without_intervals_there_is_still_a_difference() -> None:
    assert compare(fake(("cup-spin", [30.0], [0.0])), fake(("cup-spin", [10.0], [0.0]))) == (2, None)


# Files


def test_result_files(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    results.write_results(directory, MIXED, {"action": "planner", "config": Config().to_dict()})
    summary = json.loads((directory / "results.json").read_text())
    assert summary["normalized_score"] == pytest.approx(55)
    assert summary["interval"] == list(MIXED.interval or ())
    assert summary["protocol"]["action"] == "planner"
    assert summary["protocol"]["config"]["task"] == "mt30"
    assert {"python", "torch", "mujoco", "dm_control", "gymnasium", "numpy"} <= summary["versions"].keys()
    assert [(row["task"], row["episodes"], row["return"], row["success"]) for row in summary["tasks"]] == [
        ("walker-walk", 2, 600.0, 0.0), ("mw-reach", 2, 625.5, 0.5),
    ]  # fmt: skip
    assert summary["tasks"][0]["return_interval"] == [500, 700]
    with (directory / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], int(r["seed"]), float(r["return"]), float(r["success"])) for r in rows] == [
        ("walker-walk", 100, 500, 0), ("walker-walk", 101, 700, 0),
        ("mw-reach", 100, 1234, 1), ("mw-reach", 101, 17, 0),
    ]  # fmt: skip
    assert sorted(path.name for path in directory.iterdir()) == ["results.csv", "results.json"]


def test_returns_survive_the_csv_exactly(tmp_path: Path) -> None:
    value = 100 / 3
    results.write_results(tmp_path, fake(("cup-spin", [value], [0.0])), {})
    assert float((tmp_path / "results.csv").read_text().splitlines()[1].split(",")[2]) == value
    assert json.loads((tmp_path / "results.json").read_text())["tasks"][0]["return"] == value


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_results(tmp_path, MIXED, {"run": 1})
    before = (tmp_path / "results.json").read_bytes()

    def crash(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        results.write_results(tmp_path, MIXED, {"run": 2})
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_fresh_directory_is_never_one_with_results(tmp_path: Path) -> None:
    base = tmp_path / "eval-x"
    seen = []
    for _ in range(3):
        with results.fresh_directory(base) as directory:
            results.write_results(directory, MIXED, {})
        seen.append(directory.name)
    with results.fresh_directory(base) as one, results.fresh_directory(base) as other:  # at the same time
        seen += [one.name, other.name]
    with results.fresh_directory(base) as directory:  # whose name is free again
        results.write_episodes(directory, MIXED)  # and no more, as where it is interrupted
    seen.append(directory.name)
    assert seen == ["eval-x", "eval-x-2", "eval-x-3", "eval-x-4", "eval-x-5", "eval-x-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval-x", "eval-x-2", "eval-x-3", "eval-x-4"]
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "model.pt").touch()
    with results.fresh_directory(tmp_path / "training") as directory:
        assert directory == tmp_path / "training"  # a run's own directory
    assert [path.name for path in directory.iterdir()] == ["model.pt"]


def test_table_shows_every_task_and_the_score() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(results.table(MIXED, "student"))
    text = console.export_text()
    walker = next(line for line in text.splitlines() if "walker-walk" in line).split()
    assert walker == ["walker-walk", "2", "600.0", "[500.0,", "700.0]", "0.00"]
    assert "55.00" in next(line for line in text.splitlines() if "normalized score" in line)
    assert results.format_interval(None) == "-"


# Playing


@pytest.fixture(scope="module")
def agent() -> TDMPC2:
    """An untrained agent of one short task."""
    return TDMPC2(parse_cfg({"task": STANDS, "eval_episodes": 3, **TINY}))


def episodes_of(agent: TDMPC2, **changes: Any) -> TaskResult:
    (result,) = evaluate(agent, agent.cfg.replace(**changes), quiet=True).tasks
    return result


def test_evaluation_is_deterministic_and_leaves_no_trace(agent: TDMPC2) -> None:
    torch.rand(3, generator=agent.generator)
    before, weights = agent.generator.get_state(), {k: v.clone() for k, v in agent.model.state_dict().items()}
    first = episodes_of(agent)
    torch.rand(7, generator=agent.generator)
    second = episodes_of(agent)
    assert first == second
    agent.generator.set_state(before)
    episodes_of(agent, eval_noise=True)
    assert torch.equal(agent.generator.get_state(), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in agent.model.state_dict().items())


def test_processes_draw_differently_and_the_first_as_one_alone() -> None:
    assert _rank_seed(1, 0) == 1
    draws = [torch.rand(1, generator=torch.Generator().manual_seed(_rank_seed(1, rank))).item() for rank in range(8)]
    assert len(set(draws)) == 8


def test_what_was_played_is_kept_after_every_batch(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdmpc2.play.evaluation.side_by_side", lambda *_: 3)
    kept: list[Evaluation] = []
    cfg = agent.cfg.replace(task="mt30", tasks=("cartpole-balance", "pendulum-spin"), eval_episodes=2, mpc=False)
    agent = TDMPC2(cfg)
    result = evaluate(agent, cfg, quiet=True, keep=kept.append)
    assert [sum(len(task.returns) for task in played.tasks) for played in kept] == [3, 4]
    assert [len(played.tasks) for played in kept] == [2, 2]
    assert kept[-1] == result
    assert kept[0].tasks[0] == result.tasks[0]


def test_seeds_and_protocols(agent: TDMPC2) -> None:
    plain = episodes_of(agent)
    assert plain.seeds == (100, 101, 102)
    assert len(set(plain.returns)) == 3
    shifted = episodes_of(agent, eval_seed=101)
    assert shifted.seeds == (101, 102, 103)
    noisy = episodes_of(agent, eval_noise=True)
    policy = episodes_of(agent, eval_noise=False, seed=2)
    assert len({plain.returns, noisy.returns, policy.returns}) == 3


def test_policy_only(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TDMPC2(agent.cfg.replace(mpc=False))
    monkeypatch.setattr("tdmpc2.planner.plan", lambda *args, **kwargs: pytest.fail("planned"))
    first = episodes_of(policy)
    again = episodes_of(policy, seed=5)
    assert first.returns == again.returns  # the policy's mean needs no random numbers
    assert episodes_of(policy, eval_noise=True).returns != first.returns


def test_tasks_in_the_order_asked_for() -> None:
    cfg = Config(tasks=("cup-spin", "pendulum-spin"), eval_episodes=2, mpc=False, **TINY)
    agent = TDMPC2(cfg)
    cup, pendulum = evaluate(agent, quiet=True).tasks
    assert (cup.task, pendulum.task) == ("cup-spin", "pendulum-spin")
    reverse = evaluate(agent, cfg.replace(tasks=("pendulum-spin", "cup-spin")), quiet=True)
    assert reverse.tasks == (pendulum, cup)  # without planning an episode depends on its seed alone


def test_progress_counts_every_step(agent: TDMPC2, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(agent)
    out = capsys.readouterr().out
    assert f"{3 * STANDS_FOR} steps" in out
    episodes_of(agent)
    assert capsys.readouterr().out == ""


def test_an_episode_that_ends_early_counts_with_what_it_got() -> None:
    falls = TDMPC2(parse_cfg({"task": FALLS, "eval_episodes": 2, **TINY}))
    result = episodes_of(falls)
    assert result.successes == (1, 1)
    assert len(result.returns) == 2


def test_tasks_without_an_environment_are_refused_before_anything_is_played() -> None:
    cfg = Config(task="mt80", tasks=("cup-spin", "mw-reach"), **TINY)
    with pytest.raises(ValueError, match="Task 'mw-reach': Meta-World environments are not supported yet"):
        evaluate(TDMPC2(cfg), quiet=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["plain", "kernels", "compiled"])
@given(num_jobs=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_batches(device: str, kind: str, num_jobs: int) -> None:
    most = 50 if device == "cuda" else 8 if kind == "kernels" else 4
    cfg = Config()
    player = SimpleNamespace(
        device=torch.device(device), planner=SimpleNamespace(kind=kind, fixed_size=kind == "compiled")
    )
    with pytest.MonkeyPatch.context() as patch:
        needed = cfg.num_samples * cfg.mlp_dim * 4 * 16
        patch.setattr(torch.cuda, "mem_get_info", lambda _: (most * needed + 1, 2**60))
        size = side_by_side(cfg, num_jobs, player)  # type: ignore[arg-type]
        filmed = side_by_side(cfg.replace(save_video=True), num_jobs, player)  # type: ignore[arg-type]
    if kind == "compiled":
        assert size == max(n for n in range(1, most + 1) if num_jobs % n == 0)
    else:
        assert size <= most
        assert -(-num_jobs // size) == -(-num_jobs // most)  # not one batch more than needed
    assert filmed <= 8  # frames of more episodes would fill the main memory


def test_steps_of_an_evaluation(agent: TDMPC2) -> None:
    assert num_steps(agent.cfg) == 3 * STANDS_FOR
    assert num_steps(Config(task="mt80", tasks=("cup-spin", "mw-reach"), eval_episodes=2)) == 2 * (500 + 100)


# Videos


def decoded(path: Path) -> Iterator[np.ndarray]:
    return pytest.importorskip("imageio.v3", reason="videos need imageio").imiter(path, plugin="FFMPEG")


def test_video_holds_every_frame(tmp_path: Path, agent: TDMPC2) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    path = tmp_path / "new" / "stands.mp4"
    evaluate(
        agent, agent.cfg.replace(save_video=True), quiet=True, film=lambda _, frames: results.write_video(path, frames)
    )
    frames = list(decoded(path))
    assert len(frames) == STANDS_FOR
    assert frames[0].shape == (48, 32, 3)
    brightness = [frame.mean() for frame in frames]
    np.testing.assert_allclose(brightness, [20 * t for t in range(STANDS_FOR)], atol=6)  # lossy
    assert [entry.name for entry in path.parent.iterdir()] == ["stands.mp4"]


def test_only_the_first_episode_is_filmed(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(ToyEnv, "render", lambda self: drawn.append(self.start) or np.zeros((2, 2, 3), np.uint8))
    filmed: list[tuple[str, Frames]] = []
    cfg = agent.cfg.replace(save_video=True, eval_episodes=9)

    def film(task: str, frames: Frames) -> None:
        filmed.append((task, list(frames)))

    evaluate(agent, cfg, quiet=True, film=film)
    ((task, frames),) = filmed
    assert (task, len(frames)) == (STANDS, STANDS_FOR)
    (first,) = play(cfg, random_actor(cfg, 0), [Job(0, cfg.eval_seed)])
    assert drawn == [pytest.approx(first.obs[0, 0])] * STANDS_FOR
    evaluate(agent, cfg.replace(save_video=False), quiet=True, film=film)
    evaluate(agent, cfg, quiet=True)
    assert (len(filmed), len(drawn)) == (1, STANDS_FOR)


def test_missing_video_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"tdmpc2-opt\[video\]"):
        results.write_video(tmp_path / "x.mp4", [np.zeros((16, 16, 3), np.uint8)])
    assert not list(tmp_path.iterdir())


def test_video_of_a_simulated_task(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    try:
        context_module()
    except ValueError as error:
        pytest.skip(f"no OpenGL here: {error}")
    cfg = parse_cfg({"task": "pendulum-spin"})
    (episode,) = play(cfg, random_actor(cfg, 0), [Job(0, 0)], render=[0], max_steps=40)
    results.write_video(tmp_path / "pendulum.mp4", episode.frames)
    frames = list(decoded(tmp_path / "pendulum.mp4"))
    assert len(frames) == 40
    assert frames[0].shape == (384, 384, 3)
    assert np.abs(frames[0].astype(int) - frames[39]).max() > 50  # it moves
