"""Evaluations: episodes, seeds, tasks, batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, parse_cfg
from tdmpc2.play.evaluation import Evaluation, _rank_seed, evaluate, num_steps, side_by_side
from tdmpc2.play.rollout import most_on_cuda
from tests.helpers.playing import SMALL_AGENT, episodes_of
from tests.helpers.toy_envs import FALLS, FALLS_AT, STANDS_FOR


def test_evaluate_is_deterministic_and_restores_random_state(agent: TDMPC2) -> None:
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


def test_evaluate_rank_seeds_differ_and_first_is_alone() -> None:
    assert _rank_seed(1, 0) == 1
    draws = [torch.rand(1, generator=torch.Generator().manual_seed(_rank_seed(1, rank))).item() for rank in range(8)]
    assert len(set(draws)) == 8


def test_evaluate_keeps_results_after_every_batch(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdmpc2.play.evaluation.side_by_side", lambda *_: 3)
    kept: list[Evaluation] = []
    cfg = agent.cfg.replace(task="mt30", tasks=("cartpole-balance", "pendulum-spin"), eval_episodes=2, mpc=False)
    agent = TDMPC2(cfg)
    result = evaluate(agent, cfg, quiet=True, keep=kept.append)
    assert [sum(len(task.returns) for task in played.tasks) for played in kept] == [3, 4]
    assert [len(played.tasks) for played in kept] == [2, 2]
    assert kept[-1] == result
    assert kept[0].tasks[0] == result.tasks[0]


def test_evaluation_counts_the_steps_that_were_played() -> None:
    """Seconds of an action are those of a step that was taken, not of one until the time limit."""
    cfg = parse_cfg({"task": FALLS, "eval_episodes": 2, "mpc": False, **SMALL_AGENT})
    (task,) = evaluate(TDMPC2(cfg), quiet=True).tasks
    assert task.steps == 2 * FALLS_AT < num_steps(cfg)


def test_evaluate_seeds_follow_the_protocol(agent: TDMPC2) -> None:
    plain = episodes_of(agent)
    assert plain.seeds == (100, 101, 102)
    assert len(set(plain.returns)) == 3
    shifted = episodes_of(agent, eval_seed=101)
    assert shifted.seeds == (101, 102, 103)
    noisy = episodes_of(agent, eval_noise=True)
    policy = episodes_of(agent, eval_noise=False, seed=2)
    assert len({plain.returns, noisy.returns, policy.returns}) == 3


def test_evaluate_without_mpc_never_plans(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TDMPC2(agent.cfg.replace(mpc=False))
    monkeypatch.setattr("tdmpc2.planner.plan", lambda *args, **kwargs: pytest.fail("planned"))
    first = episodes_of(policy)
    again = episodes_of(policy, seed=5)
    assert first.returns == again.returns  # the policy's mean needs no random numbers
    assert episodes_of(policy, eval_noise=True).returns != first.returns


def test_evaluate_keeps_order_of_tasks() -> None:
    cfg = Config(tasks=("cup-spin", "pendulum-spin"), eval_episodes=2, mpc=False, **SMALL_AGENT)
    agent = TDMPC2(cfg)
    cup, pendulum = evaluate(agent, quiet=True).tasks
    assert (cup.task, pendulum.task) == ("cup-spin", "pendulum-spin")
    reverse = evaluate(agent, cfg.replace(tasks=("pendulum-spin", "cup-spin")), quiet=True)
    assert reverse.tasks == (pendulum, cup)  # without planning an episode depends on its seed alone


def test_evaluate_progress_counts_every_step(agent: TDMPC2, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(agent)
    out = capsys.readouterr().out
    assert f"{3 * STANDS_FOR} steps" in out
    episodes_of(agent)
    assert capsys.readouterr().out == ""


def test_evaluate_early_end_counts_its_return() -> None:
    falls = TDMPC2(parse_cfg({"task": FALLS, "eval_episodes": 2, **SMALL_AGENT}))
    result = episodes_of(falls)
    assert result.successes == (1, 1)
    assert len(result.returns) == 2


def test_evaluate_of_unplayable_task_is_refused(without_meta_world: None) -> None:
    cfg = Config(task="mt80", tasks=("cup-spin", "mw-reach"), **SMALL_AGENT)
    with pytest.raises(ValueError, match="Task 'mw-reach' needs Meta-World, which is not installed"):
        evaluate(TDMPC2(cfg), quiet=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["plain", "kernels", "compiled"])
@given(num_jobs=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_side_by_side_is_what_the_device_does_well(device: str, kind: str, num_jobs: int) -> None:
    most = 64 if device == "cuda" else 8 if kind == "kernels" else 4
    cfg = Config()
    player = SimpleNamespace(
        device=torch.device(device), planner=SimpleNamespace(kind=kind, fixed_size=kind == "compiled"), cfg=cfg
    )
    size = side_by_side(cfg, num_jobs, player)  # type: ignore[arg-type]
    filmed = side_by_side(cfg.replace(save_video=True), num_jobs, player)  # type: ignore[arg-type]
    if kind == "compiled":
        assert size == max(n for n in range(1, most + 1) if num_jobs % n == 0)
    else:
        assert size <= most
        assert -(-num_jobs // size) == -(-num_jobs // most)  # as few batches as possible
    assert filmed == size if device == "cpu" else filmed <= 8  # each video has a program that encodes it


def test_plans_on_a_gpu_are_of_as_many_environments_as_two_gigabytes_hold() -> None:
    """Whatever the GPU has free: results depend on who is planned for side by side."""
    assert [most_on_cuda(*sizes) for sizes in ((512, 384), (4096, 1792), (10**6, 1792))] == [64, 4, 1]


def test_side_by_side_is_more_where_the_policy_acts_alone(agent: TDMPC2) -> None:
    """It was four, as if plans had to stay in the caches."""
    policy = TDMPC2(agent.cfg.replace(mpc=False))
    assert [side_by_side(policy.cfg, jobs, policy) for jobs in (3, 16, 30, 300)] == [3, 16, 15, 16]
    assert side_by_side(policy.cfg.replace(save_video=True), 300, policy) == 16  # filming changes no score
    assert side_by_side(agent.cfg, 300, agent) == 4


@pytest.mark.parametrize("size", [1, 3, 16])
def test_policys_episodes_do_not_depend_on_how_many_are_side_by_side(
    agent: TDMPC2, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    policy = TDMPC2(agent.cfg.replace(mpc=False))
    expected = episodes_of(policy, eval_episodes=5)
    monkeypatch.setattr("tdmpc2.play.evaluation.side_by_side", lambda *_: size)
    found = episodes_of(policy, eval_episodes=5)
    assert found.seeds == expected.seeds
    assert found.returns == pytest.approx(expected.returns, rel=1e-5)


def test_num_steps_counts_all_episodes(agent: TDMPC2) -> None:
    assert num_steps(agent.cfg) == 3 * STANDS_FOR
    assert num_steps(Config(task="mt80", tasks=("cup-spin", "mw-reach"), eval_episodes=2)) == 2 * (500 + 100)


def test_evaluate_ends_at_the_step_that_raises(agent: TDMPC2) -> None:
    """A run that is told to stop must not play the rest of the evaluation."""
    steps: list[int] = []

    def stop_at_the_third() -> None:
        steps.append(len(steps))
        if len(steps) == 3:
            raise SystemExit(75)

    with pytest.raises(SystemExit):
        evaluate(agent, agent.cfg.replace(mpc=False), quiet=True, each_step=stop_at_the_third)
    assert steps == [0, 1, 2]
