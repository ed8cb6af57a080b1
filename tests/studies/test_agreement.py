"""Rank correlations of a model's and a teacher's values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.distillation.ranking import sequence_values, sequences
from tdmpc2.noise import NUM_SEQUENCES, draw_offsets
from tdmpc2.studies.agreement import rank_correlations
from tests.helpers.agents import random_batch


def lively(agent: TDMPC2, seed: int) -> TDMPC2:
    """Change all weights a little: the last layers start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for param in agent.model.parameters():
        param.data += 0.1 * torch.randn(param.shape, generator=generator)
    return agent


def spearman(one: list[float], other: list[float]) -> float:
    """Correlate ranks; equal values share the mean of theirs."""
    ranks = [[sorted(values).index(v) + (values.count(v) - 1) / 2 for v in values] for values in (one, other)]
    return float(np.corrcoef(ranks)[0, 1])


@torch.no_grad()
def test_rank_correlations_are_spearmans_of_both_models_values(tiny_cfg: Config) -> None:
    agents = [lively(TDMPC2(tiny_cfg), seed) for seed in (1, 2)]
    obs, action, _, task, *_ = random_batch(tiny_cfg, seed=3, batch=20)
    task[:] = tiny_cfg.task_names.index("pendulum-spin")  # of one action, so that clamping makes some of them equal
    action[:] = action.sign()
    found = rank_correlations(*agents, obs[0], action, task)
    assert found.shape == (2, 3)  # states 0, 8 and 16
    offsets = draw_offsets(tiny_cfg, 20, torch.device("cpu"), torch.Generator().manual_seed(0))
    actions = sequences(action, offsets)
    values = []
    for agent in agents:
        context = agent.model.context(task[::NUM_SEQUENCES])
        z = agent.model.encode(obs[0, ::NUM_SEQUENCES], context)
        values.append(sequence_values(agent.model, z, actions, context, torch.arange(tiny_cfg.num_q)).tolist())
    assert len(set(values[0][0][0])) < NUM_SEQUENCES, "no two sequences begin with the same action"
    want = [[spearman(values[0][k][n], values[1][k][n]) for n in range(3)] for k in range(2)]
    torch.testing.assert_close(found, torch.tensor(want))
    assert rank_correlations(agents[0], agents[0], obs[0], action, task).flatten().tolist() == pytest.approx([1.0] * 6)


def test_models_that_find_no_difference_agree_on_nothing(tiny_cfg: Config) -> None:
    agents = [TDMPC2(tiny_cfg.replace(seed=seed)) for seed in (1, 2)]  # whose last layers are zero
    obs, action, _, task, *_ = random_batch(tiny_cfg, seed=3, batch=20)
    with torch.no_grad():
        assert rank_correlations(*agents, obs[0], action, task).tolist() == [[0.0] * 3] * 2
