"""Trust figures: how often a model's own rollout tells less than the assumption that nothing moves.

B slices, H horizon, D latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

#: Steps of the rollout, or the horizon where that is shorter.
STEPS = 3


def rollout_is_worse(predicted: Tensor, encoded: Tensor, steps: int = STEPS) -> Tensor:
    """Compare a latent rollout with no change at all, at each start.

    Args:
        predicted: latents that the model rolls out from the first one under the actions of the data, [H+1, B, D].
        encoded: encodings of the true observations, [H+1, B, D].
        steps: after how many steps.

    Returns:
        True where the squared distance of the prediction to the encoding of the true observation is larger than that of
        the first encoding, [B] bool.
    """
    truth = encoded[steps].double()
    return (predicted[steps] - truth).square().sum(-1) > (encoded[0] - truth).square().sum(-1)


def trust_figures(
    worse: Tensor, squares: Mapping[str, Tensor], task: Tensor, names: Sequence[str], steps: int = STEPS
) -> dict[str, Any]:
    """Summarise starts by task.

    Args:
        worse: see :func:`rollout_is_worse`, [B].
        squares: squared errors of each start, [B]: ``reward_rmse`` and, where there is a teacher, ``value_rmse``.
        task: ids, [B].
        names: name of every id.
        steps: of the rollouts.

    Returns:
        ``steps``, ``starts`` in all, ``rollout_worse``: the median over tasks of the share of starts, and ``tasks``:
        name -> ``starts``, ``rollout_worse`` and the root mean squared errors.
    """
    tasks = {}
    for task_id in task.unique().tolist():
        rows = task == task_id
        tasks[names[task_id]] = {
            "starts": int(rows.sum()),
            "rollout_worse": float(worse[rows].double().mean()),
            **{
                name: float(squares[name][rows].double().mean().sqrt())
                for name in ("reward_rmse", "value_rmse")
                if name in squares
            },
        }
    share = float(np.median([found["rollout_worse"] for found in tasks.values()]))
    return {"steps": steps, "starts": len(task), "rollout_worse": share, "tasks": tasks}
