"""MPPI planning: recorded plans, batched against single, plan state, masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing import assert_close

from tdmpc2 import planner
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.reference import load_golden

CFG = Config(device="cpu")


@pytest.fixture(scope="module")
def g() -> dict[str, torch.Tensor]:
    return load_golden("plan.npz")


@pytest.fixture(scope="module")
def model(published: dict[str, torch.Tensor]) -> WorldModel:
    model = WorldModel(CFG)
    model.load_state_dict(published)
    return model.requires_grad_(False)


def recorded_noise(g: dict[str, torch.Tensor], cases: list[int], call: int) -> planner.PlanNoise:
    """Return the recorded draws, with Gumbel noise that forces the recorded elite to be executed."""
    num = len(cases)
    elite = torch.full((num, CFG.num_elites), -torch.inf)
    elite[torch.arange(num), g["selected_idx"][cases, call]] = 0
    return planner.PlanNoise(
        policy=torch.zeros(CFG.horizon, num, CFG.num_pi_trajs, CFG.action_dim),
        samples=g["noise"][cases, call].transpose(0, 1),
        value=torch.zeros(CFG.iterations, num, CFG.num_samples, CFG.action_dim),
        heads=torch.tensor([[0, 1]] * CFG.iterations),
        elite=elite,
        action=g["final_noise"][cases, call],
    )


def test_planner_policy_rollout_matches_recorded(model: WorldModel, g: dict[str, torch.Tensor]) -> None:
    for call in range(2):
        task = model.context(g["task"])
        z = model.encode(g["obs"][:, call], task)
        assert_close(z, g["z"][:, call], rtol=0, atol=1e-5)
        actions = planner.policy_rollout(model, z, task.unsqueeze(1), torch.zeros(3, 6, 2, 6))
        assert_close(actions[:, :, 0], g["pi_actions"][:, call], rtol=0, atol=1e-3)
        assert_close(actions[:, :, 1], actions[:, :, 0])


def test_plan_mean_is_executed_if_asked_for(
    model: WorldModel, g: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """plan_action=mean executes the elites' mean instead of one elite, and keeps the same plan."""
    cases, call = list(range(6)), 0
    task = model.context(g["task"])
    start = torch.zeros(6, CFG.horizon, CFG.action_dim)
    sampled = planner.plan(model, g["z"][:, call], task, start, recorded_noise(g, cases, call), eval_mode=True)
    monkeypatch.setattr(model, "cfg", CFG.replace(plan_action="mean"))
    averaged = planner.plan(model, g["z"][:, call], task, start, recorded_noise(g, cases, call), eval_mode=True)
    assert torch.equal(averaged.mean, sampled.mean)
    assert torch.equal(averaged.action, averaged.mean[:, 0].clamp(-1, 1))
    assert not torch.equal(averaged.action, sampled.action)


def test_plan_starts_at_the_rollout_of_the_policy_if_asked_for(
    model: WorldModel, g: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """plan_start=policy begins at the policy's mean actions instead of the previous plan, with the same samples."""
    monkeypatch.setattr(model, "cfg", CFG.replace(plan_start="policy"))
    cases, z, task = list(range(6)), g["z"][:, 0], model.context(g["task"])
    generator = torch.Generator().manual_seed(1)
    noise = recorded_noise(g, cases, 0)
    noise = noise._replace(policy=torch.randn(noise.policy.shape, generator=generator))
    begun: list[tuple[torch.Tensor, torch.Tensor]] = []

    def noting(*args: Any) -> planner.Iteration:
        begun.append((args[3], args[5]))
        return planner.iteration(*args)

    for previous in (torch.zeros(6, 3, 6), torch.rand(6, 3, 6, generator=generator)):
        planner.plan(model, z, task, previous, noise, eval_mode=True, iteration_fn=noting)
    latent, expected = z, []
    for _ in range(CFG.horizon):
        expected.append(model.policy_mean(latent, task))
        latent = model.next(latent, expected[-1], task)
    (mean, sampled), (again, _) = begun[0], begun[CFG.iterations]
    assert_close(mean, torch.stack(expected, 1), rtol=0, atol=1e-5)
    assert torch.equal(mean, again)
    own = planner.policy_rollout(model, z, task.unsqueeze(1), noise.policy)
    assert_close(sampled, own, rtol=0, atol=1e-5)


def test_each_iteration_matches_recorded(model: WorldModel, g: dict[str, torch.Tensor]) -> None:
    """Each iteration starts at the recorded mean and std; values, elites, scores and the new fit are compared."""
    task = model.context(g["task"]).unsqueeze(1)
    cases = list(range(6))
    for call in range(2):
        noise = recorded_noise(g, cases, call)
        policy = g["pi_actions"][:, call].unsqueeze(2).expand(-1, -1, CFG.num_pi_trajs, -1)
        mean, std = g["init_mean"][:, call], torch.full((6, 3, 6), 2.0)
        for i in range(CFG.iterations):
            result = planner.iteration(model, g["z"][:, call], task, mean, std, policy, noise.of_iteration(i))
            assert_close(result.value, g["value"][:, call, i], rtol=0, atol=5e-3)
            assert_close(result.elite_value, g["elite_value"][:, call, i], rtol=0, atol=5e-3)
            assert_close(result.score, g["score"][:, call, i], rtol=0, atol=1e-3)
            assert_close(result.mean, g["mean"][:, call, i], rtol=0, atol=1e-3)
            assert_close(result.std, g["std"][:, call, i], rtol=0, atol=1e-3)
            mean, std = g["mean"][:, call, i], g["std"][:, call, i]


@pytest.mark.parametrize("cases", [[0], [3], [0, 1, 2, 3, 4, 5], [5, 2]])
def test_planner_free_running_plans_match_recorded(
    model: WorldModel, g: dict[str, torch.Tensor], cases: list[int]
) -> None:
    """Two successive calls are planned alone and in a batch of tasks, with and without exploration noise."""
    task = model.context(g["task"][cases])
    prev_mean = torch.zeros(len(cases), 3, 6)
    for call in range(2):
        z = model.encode(g["obs"][cases, call], task)
        noise = recorded_noise(g, cases, call)
        quiet, noisy = (
            planner.plan(model, z, task, prev_mean, noise, eval_mode=eval_mode) for eval_mode in (True, False)
        )
        assert_close(quiet.mean, g["mean"][cases, call, -1], rtol=0, atol=1e-3)
        assert_close(quiet.last.std, g["std"][cases, call, -1], rtol=0, atol=1e-3)
        assert_close(quiet.action, g["selected_action"][cases, call], rtol=0, atol=1e-3)
        assert_close(noisy.action, g["noisy_action"][cases, call], rtol=0, atol=1e-3)
        prev_mean = quiet.mean


def test_planner_batched_equals_single_in_float64(published: dict[str, torch.Tensor]) -> None:
    """In float32, sums differ in the last bit and another elite may be chosen."""
    model = WorldModel(CFG)
    model.load_state_dict(published)
    model.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    obs = load_golden("model_forward.npz")["obs"][:5].double()
    ids = torch.tensor([0, 4, 12, 16, 29])
    noise = planner.draw_noise(CFG, 5, torch.device("cpu"), generator)
    noise = planner.PlanNoise(*(x.double() if x.is_floating_point() else x for x in noise))
    prev_mean = torch.randn(5, 3, 6, generator=generator).double().clamp(-1, 1) * torch.tensor([1, 0, 1, 0, 1]).view(
        5, 1, 1
    )

    def run(rows: slice) -> planner.Plan:
        part = planner.PlanNoise(
            noise.policy[:, rows], noise.samples[:, rows], noise.value[:, rows], noise.heads, noise.elite[rows],
            noise.action[rows],
        )  # fmt: skip
        context = model.context(ids[rows])
        z = model.encode(obs[rows], context)
        return planner.plan(model, z, context, prev_mean[rows], part, eval_mode=False)

    batched = run(slice(0, 5))
    for i in range(5):
        single = run(slice(i, i + 1))
        assert_close(single.action, batched.action[i : i + 1])
        assert_close(single.mean, batched.mean[i : i + 1])


def test_planner_inactive_dimensions_stay_zero(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    tasks = ["cup-catch", "walker-walk", "pendulum-swingup"]
    for step in range(3):
        action = agent.act(torch.randn(3, 24), t0=step == 0, task=tasks)
        for row, size in zip(action, (2, 6, 1), strict=True):
            assert not row[size:].any()
            assert row[:size].all()
        assert action.abs().max() <= 1


def test_plan_of_non_finite_model_is_finite(tiny_cfg: Config) -> None:
    """Values that overflow do not spoil a plan; acting refuses if all of them do (tests/trust/test_acting.py)."""
    model = WorldModel(tiny_cfg).requires_grad_(False)
    model._reward[-1].bias.fill_(float("nan"))  # type: ignore[union-attr,operator]
    context, noise = model.context(torch.zeros(1).long()), planner.draw_noise(tiny_cfg, 1, torch.device("cpu"), None)
    z = model.encode(torch.zeros(1, 24), context)
    assert planner.plan(model, z, context, torch.zeros(1, 3, 6), noise, eval_mode=False).action.isfinite().all()


def test_planner_needs_no_device_synchronisation(tiny_cfg: Config) -> None:
    """On fake tensors, a plan that reads a tensor on the host would fail."""
    with FakeTensorMode():
        model = WorldModel(tiny_cfg).requires_grad_(False)
        ids = torch.arange(3)
        context = model.context(ids)
        noise = planner.draw_noise(tiny_cfg, 3, torch.device("cpu"), None)
        z = model.encode(torch.zeros(3, 24), context)
        result = planner.plan(model, z, context, torch.zeros(3, 3, 6), noise, eval_mode=False)
    assert isinstance(result.action, FakeTensor)
    assert (result.action.shape, result.mean.shape) == ((3, 6), (3, 3, 6))


class TestAct:
    def test_act_returns_type_of_observation(self, tiny_cfg: Config) -> None:
        agent = TDMPC2(tiny_cfg)
        action = agent.act(np.zeros(24, np.float32), t0=True, task="walker-walk")
        assert isinstance(action, np.ndarray)
        assert action.shape == (6,)
        assert agent.act(torch.zeros(5, 24), t0=True, task=3).shape == (5, 6)

    def test_act_episode_start_is_per_environment(self, tiny_cfg: Config) -> None:
        """An environment that starts an episode forgets its plan, and the others continue theirs."""
        obs = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
        means = []
        for t0 in ([True, True], [True, False], [False, False]):
            agent = TDMPC2(tiny_cfg)
            agent.act(obs, t0=True, task=[0, 1])
            agent.generator.manual_seed(5)
            agent.act(obs, t0=np.array(t0), task=[0, 1])
            assert agent._player.plan_mean is not None
            means.append(agent._player.plan_mean)
        fresh, mixed, warm = means
        assert_close(mixed[0], fresh[0])
        assert_close(mixed[1], warm[1])
        assert not torch.allclose(warm[0], fresh[0])
        assert not torch.allclose(warm[1], fresh[1])

    def test_act_in_eval_mode_drops_only_exploration_noise(self, tiny_cfg: Config) -> None:
        obs = torch.randn(24)
        quiet, noisy = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg)
        assert not torch.equal(
            quiet.act(obs, t0=True, eval_mode=True, task=0), noisy.act(obs, t0=True, eval_mode=False, task=0)
        )
        assert torch.equal(quiet._player.plan_mean, noisy._player.plan_mean)  # type: ignore[arg-type]

    def test_act_without_mpc_is_the_policy(self, tiny_cfg: Config) -> None:
        agent = TDMPC2(tiny_cfg.replace(mpc=False))
        obs, task = torch.randn(3, 24), torch.arange(3)
        first, second = (agent.act(obs, eval_mode=True, task=task) for _ in range(2))
        assert torch.equal(first, second)
        assert_close(first, agent.model.pi(agent.model.encode(obs, task), task)[1]["mean"])
        assert not torch.equal(agent.act(obs, task=task), first)

    def test_act_on_large_action_space_plans_two_iterations_more(self) -> None:
        assert Config(task="dog-run").plan_iterations == 8
        assert Config(task="quadruped-run").plan_iterations == 6

    @pytest.mark.parametrize(
        "same", [np.int64(3), np.array(3), torch.tensor([3]), "cheetah-run", [3], ("cheetah-run",)]
    )
    def test_act_task_by_name_or_id_is_equal(self, tiny_cfg: Config, same: Any) -> None:
        obs = torch.ones(24)
        assert torch.equal(TDMPC2(tiny_cfg).act(obs, t0=True, task=same), TDMPC2(tiny_cfg).act(obs, t0=True, task=3))

    def test_act_takes_task_and_start_per_environment(self, tiny_cfg: Config) -> None:
        obs, starts = np.ones((2, 24), np.float32), np.array([True, True])
        mixed: list[Any] = [
            [0, "walker-run"],
            [np.int64(0), "walker-run"],
            [0, 2],
            np.array([0, 2]),
            torch.tensor([0, 2]),
        ]
        first, *others = (TDMPC2(tiny_cfg).act(obs, t0=starts, task=task) for task in mixed)
        assert all(np.array_equal(first, other) for other in others)
        for t0 in (1, True, np.array([1, 1]), torch.tensor([True, True])):
            assert np.array_equal(TDMPC2(tiny_cfg).act(obs, t0=t0, task=[0, 2]), first)

    def test_act_start_as_number_is_as_bool(self, tiny_cfg: Config) -> None:
        """t0=0 continues the plan as False does, and t0=1 begins one as True does."""
        outcomes = []
        for later in (0, False, 1, True):
            agent = TDMPC2(tiny_cfg)
            agent.act(torch.ones(24), t0=1, task=0)
            agent.generator.manual_seed(0)
            outcomes.append(agent.act(torch.ones(24), t0=later, task=0))
        assert torch.equal(outcomes[0], outcomes[1])
        assert torch.equal(outcomes[2], outcomes[3])
        assert not torch.equal(outcomes[0], outcomes[2])

    def test_act_with_bad_arguments_is_refused(self, tiny_cfg: Config) -> None:
        agent = TDMPC2(tiny_cfg)
        with pytest.raises(ValueError, match="size 17, but the model takes 24"):
            agent.act(np.zeros(17, np.float32), t0=True, task=0)
        with pytest.raises(ValueError, match="plays 30 tasks"):
            agent.act(np.zeros(24, np.float32), t0=True)
        for bad in ("walker-wlk", 30):
            with pytest.raises(ValueError, match=f"task={bad!r} is not one of"):
                agent.act(np.zeros(24, np.float32), t0=True, task=bad)
        for ids in ([0, -1, 2], np.array([0, -1, 2]), torch.tensor([0, -1, 2])):
            with pytest.raises(ValueError, match="task=-1 is not one of"):
                agent.act(torch.zeros(3, 24), t0=True, task=ids)
        with pytest.raises(ValueError, match="task=30 is not one of"):
            agent.act(torch.zeros(2, 24), t0=True, task=np.array([0, 30]))
        for count in (0, 2, 4):
            with pytest.raises(ValueError, match=f"{count} tasks for 3 environments: pass one, or one for each"):
                agent.act(torch.zeros(3, 24), t0=True, task=torch.arange(count))
        agent.act(torch.zeros(3, 24), t0=True, task=0)
        with pytest.raises(ValueError, match="3 environments and now with 2"):
            agent.act(torch.zeros(2, 24), t0=np.array([True, False]), task=0)
