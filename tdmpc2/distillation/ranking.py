"""The target ``ranking``: how the values of several action sequences compare in one state, which planning goes by.

Values at the actions of the data do not say which other actions would have been better. So student and teacher imagine
the same sequences, drawn around those of the data, and the student learns the differences between their values.
H horizon, B batch, N states, S sequences in each, A action, D latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.planner import imagined_return


def sequences(action: Tensor, offsets: Tensor) -> Tensor:
    """Put sequences around the actions of every S-th slice.

    Args:
        action: of the data, [H, B, A].
        offsets: see :func:`tdmpc2.noise.draw_offsets`, [H, B, S, A].

    Returns:
        [N, H, S, A] in [-1, 1].
    """
    step = offsets.shape[2]
    return (action[:, ::step].unsqueeze(2) + offsets[:, ::step]).clamp(-1, 1).transpose(0, 1)


def sequence_values(model: WorldModel, z: Tensor, actions: Tensor, task: TaskContext, heads: Tensor) -> Tensor:
    """Compute the values of sequences, of their first action alone and as planning does, of all that is imagined.

    The policy's action at the end is a constant, so that no gradient is left in the policy prior.

    Args:
        model: student or teacher.
        z: [N, D].
        actions: [N, H, S, A]; entries that a task does not have are set to 0.
        task: of the N states.
        heads: the Q heads that are averaged.

    Returns:
        [2, N, S]: Q of the first action; discounted rewards of all H and Q of what follows (docs/algorithm.md,
        "Planning").
    """
    task = task if task.embedding is None else task.unsqueeze(1)
    if task.action_mask is not None:
        actions = actions * task.action_mask.unsqueeze(1)
    first = model.Q(z.unsqueeze(1), actions[:, 0], task, "avg", heads=heads)
    total, weight, z = imagined_return(model, z, task, actions)
    with torch.no_grad():
        action = model.policy_mean(z, task)
    last = model.Q(z, action, task, "avg", heads=heads)
    return torch.stack([first.squeeze(-1), total + weight * last.squeeze(-1)])


@torch.no_grad()
def teacher_values(teacher: WorldModel, obs: Tensor, actions: Tensor, task: Tensor | None) -> Tensor:
    """Compute a teacher's values of sequences [N, H, S, A], the mean of all its heads.

    Args:
        teacher: its world model.
        obs: [N, O].
        actions: [N, H, S, A].
        task: its ids, [N], or None for a single-task teacher.

    Returns:
        [2, N, S], see :func:`sequence_values`.
    """
    context = teacher.context(task)
    heads = torch.arange(teacher.cfg.num_q, device=obs.device)
    return sequence_values(teacher, teacher.encode(obs, context), actions, context, heads)
