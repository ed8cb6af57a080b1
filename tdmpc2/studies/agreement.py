"""How far a model and its teacher agree on which actions are better: what planning with the model goes by.

N states, S sequences in each, H horizon, B slices, A action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.distillation.ranking import sequence_values, sequences
from tdmpc2.noise import draw_offsets

#: Names of the two correlations: by the value of the first action alone, and by all that a plan adds up.
RANKS = ("q_rank", "plan_rank")


def rank_correlations(agent: TDMPC2, teacher: TDMPC2, obs: Tensor, action: Tensor, task: Tensor | None) -> Tensor:
    """Correlate the ranks that two models give to the same action sequences (Spearman), in every S-th of B states.

    Args:
        agent: the model.
        teacher: an agent of the same tasks.
        obs: first observations of slices, [B, O].
        action: their actions, [H, B, A], around which the sequences are drawn, always in the same way.
        task: ids, [B], or None.

    Returns:
        [2, N]: of the first action's Q, and of the plan's value, see
        :func:`tdmpc2.distillation.ranking.sequence_values`; 1 where both agree, and 0 where one of them finds no
        difference at all.
    """
    generator = torch.Generator(action.device).manual_seed(0)
    offsets = draw_offsets(agent.cfg, action.shape[1], action.device, generator)
    actions, step = sequences(action, offsets), offsets.shape[2]
    one, other = (
        _ranks(each, obs[::step], actions, None if task is None else task[::step]) for each in (agent, teacher)
    )
    return (one * other.to(one.device)).mean(-1)


def _ranks(agent: TDMPC2, obs: Tensor, actions: Tensor, task: Tensor | None) -> Tensor:
    """Rank each state's sequences by an agent's values, [2, N, S], with mean 0 and variance 1.

    Equal values share the mean of their ranks: sequences that are clamped to the same actions are equal for everybody.
    """
    model, device = agent.model, agent.device
    context = model.context(None if task is None else task.to(device))
    z = model.encode(obs.to(device), context)
    heads = torch.arange(model.cfg.num_q, device=device)
    values = sequence_values(model, z, actions.to(device), context, heads)
    ranks = (values.unsqueeze(-1) - values.unsqueeze(-2)).sign().sum(-1)  # twice the rank, with mean 0
    return ranks / ranks.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
