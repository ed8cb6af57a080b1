"""Random models of tasks that may terminate, whose head predicts the end for some steps and not for others."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmpc2.nn.world_model import TaskContext, WorldModel


def logits_of(model: WorldModel, z: Tensor, task: TaskContext, actions: Tensor) -> Tensor:
    """Compute the logits of termination after every action of sequences, [H, E, S].

    Args:
        model: has a termination head.
        z: [E, D].
        task: context broadcastable to [E, S].
        actions: [E, H, S, A].
    """
    z, found = z.unsqueeze(1), []
    for action in actions.unbind(1):
        z = model.next(z, action, task)
        found.append(model.termination(z, task).squeeze(-1))
    return torch.stack(found)


@torch.no_grad()
def balance(model: WorldModel, z: Tensor, task: TaskContext, actions: Tensor) -> WorldModel:
    """Let the head predict the end for about a third of the steps of some sequences; the model is changed in place.

    A random head gives all steps nearly the same logit.
    """
    first, last = model._termination[0], model._termination[-1]
    first.weight[:, model.cfg.latent_dim :] /= 20  # weights of the task, so that each task has steps of both kinds
    logits = logits_of(model, z, task, actions)
    spread = (logits - logits.mean(-1, keepdim=True)).std()
    last.weight.div_(spread)
    last.bias.sub_(logits.quantile(2 / 3)).div_(spread)
    return model
