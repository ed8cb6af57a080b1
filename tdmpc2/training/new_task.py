"""A task that a run appends to those of the file it starts from: docs/algorithm.md, "Fine-tuning"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.run_state import NEW_RUN, part_of
from tdmpc2.data.batch import Batch
from tdmpc2.data.ring import ReplayRing
from tdmpc2.losses import model_losses
from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.noise import draw_update_noise
from tdmpc2.support.entries import check_entries, flag
from tdmpc2.training.loop import Run

_SLICES = 512  # of the first episodes, by which the embedding is chosen


class NewTask:
    """The task that a run appends to those of its file, if it does: its embedding follows from its first episodes.

    Args:
        run: of the agent.
        replay: where the episodes are.

    Attributes:
        chosen: the embedding is; until then there is no policy of the task to act with.
    """

    def __init__(self, run: Run, replay: ReplayRing) -> None:
        self._run, self._replay = run, replay
        self.chosen = run.new_task is None

    def choose(self) -> None:
        """Choose the embedding, once there is an episode that a slice can be drawn from, and say which it is."""
        run, cfg = self._run, self._run.cfg
        if self.chosen or not len(self._replay.sampler):
            return
        model, new = run.agent.model, len(cfg.task_specs) - 1
        rows = embeddings(model)
        batch = self._replay.sampler.draw(0, _SLICES, cfg.horizon, cfg.seed).to(run.agent.device)
        losses = run.group.from_main(lambda: embedding_losses(run.agent, batch).tolist())
        nearest = min(range(new), key=losses.__getitem__)
        start = nearest if losses[nearest] <= losses[new] else new
        with torch.no_grad():
            model._task_emb.weight[new].copy_(rows[start])
        self.chosen = True
        known = f"that of {cfg.task_names[nearest]}"
        texts = f"{known} ({losses[nearest]:.4g})", f"a fresh one ({losses[new]:.4g})"
        better, other = texts if start == nearest else texts[::-1]
        run.message(
            f"{cfg.task_names[new]} is new to {cfg.checkpoint}. Its embedding starts as {better}, by the loss on its "
            f"first episodes; next is {other}"
        )

    def state(self) -> Mapping[str, Any]:
        """Say whether the embedding is chosen."""
        return {"chosen": self.chosen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            ValueError: the entry is missing or no truth value.
        """
        origin = part_of(self._run.cfg.run_dir, "new_task")
        self.chosen = check_entries(origin, state, {"chosen": flag()}, NEW_RUN)["chosen"]


def embeddings(model: WorldModel) -> Tensor:
    """Collect the embedding of every task as the networks take it, with a norm of at most 1: [N, task_dim]."""
    rows = model.context(torch.arange(len(model.cfg.task_specs))).embedding
    assert rows is not None
    return rows


@torch.no_grad()
def embedding_losses(agent: TDMPC2, batch: Batch) -> Tensor:
    """Compute how well each row of the embedding serves slices of one task: [N].

    It is the loss of consistency and reward with their coefficients, as in an update. The loss of the values is left
    out, since its targets change with the row: one for which all values are alike would look good.

    Args:
        agent: with N tasks.
        batch: slices, all of one task, whose action mask and discount count.
    """
    cfg, model = agent.cfg, agent.model
    noise = draw_update_noise(
        cfg, len(batch.task), agent.device, torch.Generator(agent.device).manual_seed(cfg.seed)
    )  # for the value targets, which are not used
    own = model.context(batch.task)
    losses = []
    for row in embeddings(model):
        context = TaskContext(row.expand(len(batch.task), -1), own.action_mask, own.discount)
        loss, _ = model_losses(model, agent.distillation, batch, context, noise, None)
        losses.append(cfg.consistency_coef * loss.consistency + cfg.reward_coef * loss.reward)
    return torch.stack(losses)
