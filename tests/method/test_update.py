"""One training update: recorded scenarios, gradient bookkeeping, determinism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from tdmpc2 import losses
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.dataset import Batch
from tdmpc2.nn.math import squashed_entropy
from tdmpc2.noise import UpdateNoise
from tests.helpers.agents import random_batch
from tests.helpers.fake import updates_as_on_a_gpu
from tests.helpers.reference import load_golden
from tests.helpers.runs import TINY

#: scenario -> (policy loss, teacher, gradient norm recorded without the references' leaks)
SCENARIOS = {
    "seed_noteacher": ("opt", False, "grad_norm_excl_stale_pi"),
    "seed_teacher045": ("opt", True, "grad_norm_excl_stale_pi"),
    "upstream_noteacher_noleak": ("tdmpc2", False, "grad_norm"),
}
HORIZON, BATCH = 3, 32


def zero_noise(cfg: Config, batch: int) -> UpdateNoise:
    eps, heads = torch.zeros(cfg.horizon + 1, batch, cfg.action_dim), torch.tensor([0, 1])
    return UpdateNoise(eps[1:], heads, eps, heads, None, None)


def make_agent(
    g: dict[str, torch.Tensor], published: dict[str, torch.Tensor], scenario: str, compile: str = "false"
) -> TDMPC2:
    policy_loss, with_teacher, _ = SCENARIOS[scenario]
    cfg = Config(dropout=0.0, policy_loss=policy_loss, device="cpu", compile=compile)
    teacher = None
    if with_teacher:
        teacher = TDMPC2(cfg)
        teacher.load({name.removeprefix("teacher/"): g[name].float() for name in g if name.startswith("teacher/")})
    agent = TDMPC2(cfg, teacher)
    agent.load(published)
    return agent


def replay(scenario: str, published: dict[str, torch.Tensor], compile: str = "false") -> dict[str, Any]:
    """Run five updates of one recorded scenario and return everything that was recorded about them."""
    g = load_golden("update.npz")
    agent = make_agent(g, published, scenario, compile)
    initial = {name: p.clone() for name, p in agent.model.state_dict().items()}
    stats: list[dict[str, torch.Tensor]] = []
    grads: dict[str, torch.Tensor] = {}
    for optim in (agent.optim, agent.pi_optim):
        optim.register_step_pre_hook(lambda *_: _record_gradients(agent, grads))
    agent.compile_update()
    for k in range(5):
        batch = Batch(g["obs"][k], g["action"][k], g["reward"][k], g["task"][k])
        stats.append(agent.update(batch, zero_noise(agent.cfg, BATCH)))
    return {"g": g, "s": scenario, "agent": agent, "initial": initial, "stats": stats, "grads": grads}


@pytest.fixture(scope="module", params=SCENARIOS)
def replayed(request: pytest.FixtureRequest, published: dict[str, torch.Tensor]) -> dict[str, Any]:
    targets: list[torch.Tensor] = []
    original_target = losses.td_target

    def recorded(*args: Any) -> torch.Tensor:
        targets.append(original_target(*args))
        return targets[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "td_target", recorded)
        return {**replay(request.param, published), "targets": targets}


def _record_gradients(agent: TDMPC2, grads: dict[str, torch.Tensor]) -> None:
    """Keep each parameter's first gradient; at these norms (below 20) clipping leaves it unchanged."""
    for name, p in agent.model.named_parameters():
        if p.grad is not None and name not in grads:
            grads[name] = p.grad.clone()


def test_update_losses_match_recorded(replayed: dict[str, Any]) -> None:
    g, s = replayed["g"], replayed["s"]
    got = {name: torch.stack([step[name] for step in replayed["stats"]]) for name in replayed["stats"][0]}
    names = ["consistency_loss", "reward_loss", "value_loss", "total_loss", "pi_loss", "pi_scale"]
    for name in names + (["distillation_loss"] if "distillation_loss" in got else []):
        assert_close(got[name], g[f"{s}/stat/{name}"].float(), rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert_close(got["grad_norm"], g[f"{s}/stat/{SCENARIOS[s][2]}"].float(), rtol=1e-4, atol=0)
    assert_close(got["pi_grad_norm"], g[f"{s}/stat/pi_grad_norm"].float(), rtol=2e-3, atol=0)
    assert SCENARIOS[s][1] == ("distillation_loss" in got)


def test_update_td_targets_match_recorded(replayed: dict[str, Any]) -> None:
    g, s = replayed["g"], replayed["s"]
    assert_close(torch.stack(replayed["targets"]), g[f"{s}/td_target"], rtol=1e-4, atol=1e-4)


def test_update_first_gradients_match_recorded(replayed: dict[str, Any]) -> None:
    g, s, grads = replayed["g"], replayed["s"], replayed["grads"]
    recorded = [key for key in g if key.startswith(f"{s}/grad1_norm/")]
    assert len(recorded) == 51
    for key in recorded:
        name = key.removeprefix(f"{s}/grad1_norm/")
        assert_close(grads[name].norm(), g[key].float(), rtol=1e-3, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        if (full := g.get(f"{s}/grad1/{name}")) is not None:
            assert_close(grads[name], full, rtol=1e-2, atol=1e-3 * float(full.abs().max()) + 1e-9)


def test_update_final_weights_match_recorded(replayed: dict[str, Any]) -> None:
    g, s, initial = replayed["g"], replayed["s"], replayed["initial"]
    final = replayed["agent"].model.state_dict()
    assert len([key for key in g if key.startswith(f"{s}/final_norm/")]) == len(final) == 61
    for name, p in final.items():
        assert_close(p.norm(), g[f"{s}/final_norm/{name}"].float(), rtol=1e-4, atol=1e-6)
        delta = (p - initial[name]).norm()
        assert_close(
            delta, g[f"{s}/final_delta_norm/{name}"].float(), rtol=2e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        if (full := g.get(f"{s}/final/{name}")) is not None:
            assert_close(p, full, rtol=0, atol=5e-5)
        else:
            assert_close(p.flatten()[:256], g[f"{s}/final_head/{name}"], rtol=0, atol=5e-5)


def test_update_teacher_and_student_rewards_match_recorded(published: dict[str, torch.Tensor]) -> None:
    from tdmpc2.distillation.outputs import teacher_columns

    g = load_golden("update.npz")
    agent = make_agent(g, published, "seed_teacher045")
    assert agent.teacher is not None
    for player, key in ((agent.teacher, "teacher_reward_step0"), (agent, "student_reward_step0")):
        got = teacher_columns(player.model, ("reward",), g["obs"][0, 0], g["action"][0, 0], g["task"][0])["reward"]
        assert_close(got, g[key], rtol=1e-4, atol=5e-4)


def test_update_with_same_seed_repeats_and_leaks_no_gradient(tiny_cfg: Config) -> None:
    agents = [TDMPC2(tiny_cfg) for _ in range(2)]
    for step in range(3):
        first, second = (agent.update(random_batch(tiny_cfg, step)) for agent in agents)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    for agent in agents:
        assert all(p.grad is None for p in agent._policy_params)
        assert all(p.grad is None for p in agent.model._target_Qs.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(agents[0].model.parameters(), agents[1].model.parameters(), strict=True)
    )


@pytest.mark.parametrize("form", [dict, lambda fields: TensorDict(fields, batch_size=[])], ids=["dict", "TensorDict"])
def test_update_of_any_batch_form_is_equal(tiny_cfg: Config, form: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    named, other = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg)
    batch = random_batch(tiny_cfg, 0)
    first, second = named.update(batch), other.update(form(batch._asdict()))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for (name, p), q in zip(named.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


def test_update_with_nan_reward_gives_nan_losses(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    batch = random_batch(tiny_cfg, 0)
    batch.reward[1, 3] = float("nan")
    stats = agent.update(batch)
    assert all(stats[name].isnan() for name in ("reward_loss", "value_loss", "total_loss", "grad_norm"))
    assert stats["consistency_loss"].isfinite()


def test_policy_loss_has_gradient_in_the_policy_only(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg)
    agent.update(random_batch(tiny_cfg, 0))
    before = [None if p.grad is None else p.grad.clone() for p in agent._model_params]
    zs = torch.randn(tiny_cfg.horizon + 1, 8, tiny_cfg.latent_dim)
    agent._update_policy(zs, torch.arange(8), agent.draw_noise(8))
    for old, p in zip(before, agent._model_params, strict=True):
        assert (old is None and p.grad is None) or torch.equal(old, p.grad)  # type: ignore[arg-type]


def test_cloning_loss_is_the_formula(tiny_cfg: Config) -> None:
    """The loss is summed in plain loops over steps, demonstrations and the actions that each task has."""
    agent = TDMPC2(tiny_cfg)
    model, batch = agent.model, random_batch(tiny_cfg, 0)
    count = len(batch.task)
    demonstrated = (torch.arange(count) % 3 == 0).float()[:, None]
    action = torch.rand(tiny_cfg.horizon, count, tiny_cfg.action_dim) * 2 - 1
    found = losses.cloning_loss(
        model, action, batch.action, demonstrated, model.context(batch.task), demonstrated.sum()
    )
    expected = 0.0
    for t in range(tiny_cfg.horizon):
        for b in range(0, count, 3):
            own = tiny_cfg.task_specs[int(batch.task[b])].action_dim
            error = (action[t, b, :own] - batch.action[t, b, :own]).square().mean()
            expected += tiny_cfg.rho**t * float(error) / len(range(0, count, 3)) / tiny_cfg.horizon
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_update_with_demonstrations_adds_the_cloning_loss_to_the_policy_alone(tiny_cfg: Config) -> None:
    batch = random_batch(tiny_cfg, 0)
    shown = batch._replace(demonstrated=torch.ones(1, len(batch.task), 1))
    plain, cloning = TDMPC2(tiny_cfg), TDMPC2(tiny_cfg.replace(mode="online", demonstrations="x", bc_coef=2.0,
        policy_loss=tiny_cfg.policy_loss))  # fmt: skip
    one, other = plain.update(batch), cloning.update(shown)
    assert_close(other["pi_loss"], one["pi_loss"] + 2 * other["bc_loss"])
    assert torch.equal(one["total_loss"], other["total_loss"])
    assert "bc_loss" not in one
    with pytest.raises(ValueError, match="'demonstrated' has shape"):
        cloning.update(batch._replace(demonstrated=torch.ones(len(batch.task))))


def test_batch_without_a_demonstration_has_no_cloning_loss(tiny_cfg: Config) -> None:
    """Divided by none, it was NaN, and the policy with it from then on, even with bc_coef=0."""
    agent, batch = TDMPC2(tiny_cfg), random_batch(tiny_cfg, 0)
    stats = agent.update(batch._replace(demonstrated=torch.zeros(1, len(batch.task), 1)))
    assert float(stats["bc_loss"]) == 0
    assert all(parameter.isfinite().all() for parameter in agent.model.parameters())


def test_dropout_acts_in_training_losses_only(tiny_cfg: Config) -> None:
    agent = TDMPC2(tiny_cfg.replace(dropout=0.5))
    noise = agent.draw_noise(4096)
    assert noise.value_dropout is not None
    values, counts = noise.value_dropout.unique(return_counts=True)
    assert values.tolist() == [0.0, 2.0]
    assert abs(float(counts[0] / counts.sum()) - 0.5) < 0.01
    z, a = torch.randn(4, tiny_cfg.latent_dim), torch.randn(4, tiny_cfg.action_dim)
    agent.model.train()  # switching modes must not bring dropout back
    assert torch.equal(agent.model.Q(z, a, 3, "all"), agent.model.Q(z, a, 3, "all"))
    results = [agent.update(random_batch(tiny_cfg, 0), agent.draw_noise(8)) for _ in range(2)]
    assert results[0]["value_loss"] != results[1]["value_loss"]


def test_update_with_teacher_pulls_student_towards_it(tiny_cfg: Config) -> None:
    teacher = TDMPC2(tiny_cfg.replace(seed=7, latent_dim=24))
    with torch.no_grad():
        teacher.model._reward[-1].bias += torch.linspace(-1, 1, tiny_cfg.num_bins)  # type: ignore[union-attr,operator]
    frozen = {name: p.clone() for name, p in teacher.model.state_dict().items()}
    student = TDMPC2(tiny_cfg.replace(distillation_weight=10.0, lr=3e-3), teacher)
    losses = [float(student.update(random_batch(tiny_cfg, 0))["distillation_loss"]) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in teacher.model.state_dict().items())


def test_agent_with_teacher_of_other_task_set_is_refused(tiny_cfg: Config) -> None:
    teacher = TDMPC2(tiny_cfg.replace(task="mt80"))
    with pytest.raises(ValueError, match=r"different task sets: student task=mt30 .* teacher task=mt80"):
        TDMPC2(tiny_cfg, teacher)


def test_update_needs_no_device_synchronisation(tiny_cfg: Config) -> None:
    """On fake tensors, an update that reads a tensor on the host would fail."""
    with updates_as_on_a_gpu():
        agent = TDMPC2(tiny_cfg, TDMPC2(tiny_cfg))
        stats = agent.update(random_batch(tiny_cfg, 0))
    assert all(value.shape == () for value in stats.values())


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["seed_teacher045", "upstream_noteacher_noleak"])  # they cover every compiled loss
def test_update_compiled_matches_recorded(scenario: str, published: dict[str, torch.Tensor]) -> None:
    replayed = replay(scenario, published, compile="true")
    assert replayed["agent"].update_compiled
    test_update_losses_match_recorded(replayed)
    test_update_first_gradients_match_recorded(replayed)
    test_update_final_weights_match_recorded(replayed)


def test_policy_loss_divides_the_values_of_each_task_by_its_own_scale() -> None:
    """With one scale for all, a task of large values made those of the others too small to learn from."""
    cfg = Config(**TINY).replace(value_scale="per_task", tau=0.0, entropy_coef=0.0, dropout=0.0)
    agent = TDMPC2(cfg)
    with torch.no_grad():  # new heads are zero and give equal values
        agent.model._Qs.params[8].normal_(generator=torch.Generator().manual_seed(1))
    batch = random_batch(cfg, 0)
    batch = batch._replace(task=torch.arange(len(batch.task)) % 2)
    noise, zs = agent.draw_noise(len(batch.task)), torch.rand(cfg.horizon + 1, len(batch.task), cfg.latent_dim)

    def loss(*scales: float) -> torch.Tensor:
        scale = torch.ones(len(cfg.task_specs))
        scale[: len(scales)] = torch.tensor(scales)
        task = agent.model.context(batch.task)
        return losses.policy_loss(agent.model, agent.group, zs, task, noise, scale, batch).loss

    alone = losses.policy_loss(
        agent.model, agent.group, zs, agent.model.context(batch.task), noise, torch.tensor(2.0)
    ).loss
    assert_close(loss(2.0, 2.0), alone, rtol=1e-6, atol=0.0)
    assert_close(loss(2.0, 3.0), loss(2.0, 1e30) + loss(1e30, 3.0), rtol=1e-5, atol=0.0)
    assert abs(loss(2.0, 1e30)) > 1e-3


def test_update_with_scales_of_tasks_moves_only_those_of_the_batch() -> None:
    agent = TDMPC2(Config(**TINY).replace(value_scale="per_task"))
    with torch.no_grad():
        agent.model._Qs.params[8].normal_(generator=torch.Generator().manual_seed(1))
    batch = random_batch(agent.cfg, 0)
    stats = agent.update(batch._replace(task=torch.full_like(batch.task, 1)))
    assert agent.scale[1] > 1
    assert (agent.scale == 1).sum() == len(agent.scale) - 1
    assert stats["pi_scale"] == agent.scale.mean()


def test_value_scale_per_task_of_one_task_is_refused() -> None:
    with pytest.raises(ValueError, match="value_scale=per_task tells tasks apart, and task=walker-walk is one"):
        Config(task="walker-walk", value_scale="per_task")


@pytest.mark.parametrize("tasks", ["mt30", "walker-walk"])
def test_policy_loss_with_the_entropy_of_actions_counts_it_by_its_coefficient(tiny_cfg: Config, tasks: str) -> None:
    """Padded actions of a set of tasks add nothing to it."""
    cfg = tiny_cfg.replace(policy_loss="squashed", entropy_coef=0.5, task=tasks, tasks=None)
    agent, count = TDMPC2(cfg), 6
    noise = agent.draw_noise(count)
    ids = torch.arange(count) if cfg.multitask else None
    task = agent.model.context(ids)
    zs = torch.randn(cfg.horizon + 1, count, cfg.latent_dim)
    entropies = []
    for coef in (0.0, 0.5):
        agent.model.cfg = cfg.replace(entropy_coef=coef)
        loss = losses.policy_loss(agent.model, agent.group, zs, task, noise, agent.scale).loss
        entropies.append(loss.detach())
    agent.model.cfg = cfg
    _, info = agent.model.pi(zs, task, noise.policy_eps)
    expected = 0.0
    for b in range(count):
        own = cfg.task_specs[b if cfg.multitask else 0].action_dim
        parts = (info[name][:, b : b + 1, :own] for name in ("presquash_mean", "log_std"))
        entropy = squashed_entropy(*parts, noise.policy_eps[:, b : b + 1, :own])
        expected += float((agent.model.rho * entropy.flatten()).mean().detach()) / count
    assert float(entropies[0] - entropies[1]) == pytest.approx(0.5 * expected, rel=1e-4)
