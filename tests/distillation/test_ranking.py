"""The target ``ranking``: the sequences, their values, the loss, and what it teaches."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distillation.losses import ranking_loss
from tdmpc2.distillation.ranking import sequence_values, sequences, teacher_values
from tdmpc2.distillation.teachers import TaskTeachers
from tdmpc2.noise import NUM_SEQUENCES, draw_offsets
from tdmpc2.planner import predicted_return
from tests.helpers.agents import random_batch
from tests.helpers.distillation import make_expert, make_student

CPU = torch.device("cpu")


@pytest.fixture
def cfg(tiny_cfg: Config) -> Config:
    return tiny_cfg.replace(distillation_targets=("ranking",), dropout=0)


def test_offsets_have_widths_of_their_own(cfg: Config) -> None:
    offsets = draw_offsets(cfg, 4000, CPU, torch.Generator().manual_seed(0))
    assert offsets.shape == (3, 4000, NUM_SEQUENCES, 6)
    width = offsets.square().mean((0, 3)).sqrt().log()  # of each sequence: log-uniform between 0.1 and 2
    low, high = torch.tensor([0.1, 2.0]).log()
    assert float(width.mean()) == pytest.approx(float(low + high) / 2, abs=0.05)
    assert float(width.std()) == pytest.approx(float(high - low) / 12**0.5, abs=0.05)


def test_sequences_lie_around_actions_of_every_eighth_slice() -> None:
    generator = torch.Generator().manual_seed(0)
    action = torch.rand(3, 20, 2, generator=generator) * 2 - 1
    offsets = torch.randn(3, 20, 8, 2, generator=generator)
    found = sequences(action, offsets)
    assert found.shape == (3, 3, 8, 2)  # slices 0, 8 and 16, each 3 steps
    for state, row in enumerate((0, 8, 16)):
        for t in range(3):
            assert_close(found[state, t], (action[t, row] + offsets[t, row]).clamp(-1, 1))
    assert torch.equal(sequences(action, torch.zeros_like(offsets))[1, :, 5], action[:, 8])


@pytest.mark.parametrize("episodic", [False, True])
def test_sequence_values_are_those_of_the_planner(cfg: Config, episodic: bool) -> None:
    model = make_expert(cfg.replace(episodic=episodic)).model
    generator = torch.Generator().manual_seed(4)
    context = model.context(torch.tensor([0, 3, 29]))
    z = model.encode(torch.randn(3, cfg.obs_dim, generator=generator), context)
    actions = torch.rand(3, 3, 8, 6, generator=generator) * 2 - 1
    heads = torch.tensor([2, 0])
    first, planned = sequence_values(model, z, actions, context, heads)
    task = context.unsqueeze(1)
    own = actions * context.action_mask[:, None, None]  # type: ignore[index]
    assert_close(planned, predicted_return(model, z, task, own, torch.zeros(3, 8, 6), heads))
    assert_close(first, model.Q(z.unsqueeze(1), own[:, 0], task, "avg", heads=heads).squeeze(-1))


def test_ranking_loss_compares_differences_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(2, 5, 8, generator=generator) * 3
    shifted = teacher + torch.randn(2, 5, 1, generator=generator) * 100
    assert float(ranking_loss(shifted, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(ranking_loss(-teacher, teacher)) > 0.3
    mask = torch.zeros(40, 1)
    mask[8] = 1  # the second state's slice
    alone = ranking_loss(-teacher[:, 1:2], teacher[:, 1:2])
    assert_close(ranking_loss(-teacher, teacher, mask), alone / 5)


def test_update_leaves_no_gradient_in_the_policy_prior(cfg: Config) -> None:
    """Check the state at the step of the model: a gradient that its loss left there would be the policy's own."""
    student = make_student(cfg, make_expert(cfg))
    found: list[bool] = []
    params = student._policy_params
    student.optim.register_step_pre_hook(lambda *_: found.append(all(p.grad is None for p in params)))
    student.update(random_batch(cfg, 0))
    assert found == [True]


def test_student_learns_how_sequences_compare(cfg: Config) -> None:
    """After some updates on one batch its values of new sequences correlate with the teacher's."""
    cfg = cfg.replace(distillation_targets=("ranking 1",), consistency_coef=0, reward_coef=0, value_coef=0, lr=3e-3)
    expert = make_expert(cfg)
    student, batch = make_student(cfg, expert), random_batch(cfg, 0, 64)
    offsets = draw_offsets(cfg, 64, CPU, torch.Generator().manual_seed(9))
    actions, obs, task = sequences(batch.action, offsets), batch.obs[0, ::8], batch.task[::8]

    def correlation() -> float:
        a, b = (teacher_values(agent.model, obs, actions, task) for agent in (student, expert))
        a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
        return float((torch.nn.functional.cosine_similarity(a, b, dim=-1)).mean())

    before = correlation()
    for _ in range(150):
        student.update(batch)
    assert before < 0.3
    assert correlation() > 0.6


def test_several_teachers_value_the_states_of_their_tasks(cfg: Config) -> None:
    first, second = make_expert(cfg), make_expert(cfg, seed=5)
    names = cfg.task_names
    teachers = TaskTeachers(cfg, {names[0]: first.model, names[1]: second.model}, CPU)
    batch, ids = random_batch(cfg, 2, 24), torch.tensor([0, 1, 2])
    offsets = draw_offsets(cfg, 24, CPU, None)
    actions, obs = sequences(batch.action, offsets), batch.obs[0, ::8]
    found = teachers.sequence_values(obs, actions, ids)
    for row, agent in enumerate((first, second)):
        rows = slice(row, row + 1)
        assert_close(found[:, rows], teacher_values(agent.model, obs[rows], actions[rows], ids[rows]))
    assert not found[:, 2].any()


def test_two_runs_from_one_seed_draw_the_same_sequences(cfg: Config, tiny_cfg: Config) -> None:
    for unneeded in (TDMPC2(cfg), TDMPC2(tiny_cfg, make_expert(tiny_cfg))):  # no teacher, or another target
        assert unneeded.draw_noise(8).offsets is None
    agents = [TDMPC2(cfg, make_expert(cfg)) for _ in range(2)]
    offsets = [agent.draw_noise(8).offsets for agent in agents]
    assert offsets[0] is not None
    assert torch.equal(offsets[0], offsets[1])  # type: ignore[arg-type]
    assert offsets[0].shape[1] == 8
    rows = agents[0].draw_noise(8)
    assert torch.equal(rows.for_rows(slice(2, 5)).offsets, rows.offsets[:, 2:5])  # type: ignore[index,arg-type]
