"""An exponential moving average of a model's weights, kept beside a run: ``ema_decay``, ``ema.pt``.

Nothing that learns reads it. After update n each weight of the average moves towards the model's,

    average += (1 - d) (weight - average),    d = min(ema_decay, n / (n + 9)),

so that the random weights of the beginning are forgotten soon, also in short runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.run_state import NEW_RUN, part_of
from tdmpc2.config import Config
from tdmpc2.support.entries import check_entries, record, whole
from tdmpc2.training.run_dir import step_of

NAME = "ema.pt"
_ENTRIES = {"updates": whole(), "weights": record()}


class AveragedWeights:
    """The average of the weights of an agent's model; begins as the weights are now.

    Args:
        agent: it is averaged over its updates.
        cfg: ``ema_decay``, and the directory of the run.
    """

    def __init__(self, agent: TDMPC2, cfg: Config) -> None:
        self._agent, self._cfg = agent, cfg
        self._updates = 0
        self._averages = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take an update of the agent into account. Nothing waits for the device."""
        self._updates += 1
        decay = min(self._cfg.ema_decay, self._updates / (self._updates + 9))
        weights = self._agent.model.state_dict()
        torch._foreach_lerp_(list(self._averages.values()), [weights[name] for name in self._averages], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the agent have the averaged weights meanwhile, and its own ones again afterwards."""
        model = self._agent.model
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        _copy(self._averages, model.state_dict())
        try:
            yield
        finally:
            _copy(own, model.state_dict())

    def save(self, step: int) -> None:
        """Write ``ema.pt``, a checkpoint like ``model.pt``, at a step of the run.

        Raises:
            ValueError: the disk refused.
        """
        with self.in_place():
            self._agent.save(self._cfg.run_dir / NAME, step=step, overwrite=True)

    def restore(self, step: int) -> None:
        """Write ``ema.pt`` again if it is missing, damaged or of another step than the run is at.

        Raises:
            ValueError: the disk refused.
        """
        if step_of(self._cfg.run_dir / NAME) != step:
            self.save(step)

    def state(self) -> Mapping[str, Any]:
        """Return the average and how many updates it is of."""
        return {"updates": self._updates, "weights": dict(self._averages)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            ValueError: it is not of this model.
        """
        origin = part_of(self._cfg.run_dir, "ema")
        found = check_entries(origin, state, _ENTRIES, NEW_RUN)
        for name, average in self._averages.items():
            saved = found["weights"].get(name)
            if not isinstance(saved, Tensor) or saved.shape != average.shape or not saved.isfinite().all():
                raise ValueError(f"{origin}: '{name}' is not {list(average.shape)} finite numbers. {NEW_RUN}")
        self._updates = found["updates"]
        _copy(found["weights"], self._averages)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
