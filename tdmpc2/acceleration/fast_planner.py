"""The fastest way that this machine has to compute :func:`tdmpc2.planner.plan`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tdmpc2 import planner
from tdmpc2.acceleration.cpu.networks import PackedNetworks
from tdmpc2.acceleration.cuda_graph import GraphedPlan
from tdmpc2.nn.world_model import WorldModel
from tdmpc2.support.runtime import can_compile

#: Plans that are worth building the CPU kernels (seconds, once per machine), and compiling (a minute per process).
_WORTH_BUILDING, _WORTH_COMPILING = 100, 1000


class FastPlanner:
    """Plans with one model, plainly until :meth:`speed_up`.

    Attributes:
        kind: ``plain``; ``kernels``, those of :mod:`tdmpc2.acceleration.cpu`; or ``compiled`` by torch, on CUDA as
            one graph.
        functions: what replaces the planner's own functions, by the arguments of :func:`tdmpc2.planner.plan`.
    """

    def __init__(self, model: WorldModel) -> None:
        self.kind = "plain"
        self.functions: dict[str, Any] = {}
        self._model = model
        self._networks: PackedNetworks | None = None
        self._plan: Callable[..., planner.Plan] = planner.plan

    @property
    def fixed_size(self) -> bool:
        """Whether every other number of environments has to be compiled anew."""
        return self.kind == "compiled"

    def speed_up(self, wanted: str, num_plans: int) -> str:
        """Choose the fastest way.

        Args:
            wanted: ``auto`` (if so many plans are worth it), ``true`` or ``false``.
            num_plans: how often it will plan.

        Returns:
            One line for the user, or nothing.
        """
        device = self._model.bins.device
        if self.kind == "kernels":
            self._pack()
        if wanted == "false" or self.kind != "plain":
            return ""
        reason = ""
        if device.type == "cpu" and (wanted == "true" or num_plans >= _WORTH_BUILDING):
            try:
                self._pack()
                self.kind = "kernels"
                return ""
            except (RuntimeError, ValueError) as error:
                reason = f"{error}. "
        if wanted == "auto" and num_plans < _WORTH_COMPILING:
            return ""
        if not can_compile(device):
            return f"{reason}Planning without compilation: no compiler for {device.type} found (for a CPU, install g++)"
        self.functions = dict(planner.compiled())
        plan = partial(planner.plan, **self.functions)
        self._plan, self.kind = GraphedPlan(plan) if device.type == "cuda" else plan, "compiled"
        return f"{reason}Compiling the planner on its first call (about a minute; compile=false turns it off)"

    def __call__(self, *args: Any, **kwargs: Any) -> planner.Plan:
        """As :func:`tdmpc2.planner.plan`, without its first argument."""
        if self._networks is not None and self._networks.outdated(self._model):
            self._pack()
        return self._plan(self._model, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model, "kind": self.kind}  # compiled code and packed weights can't be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]
        if state["kind"] != "plain":
            self.speed_up("true", 0)

    def _pack(self) -> None:
        self._networks = PackedNetworks(self._model)
        self.functions = dict(self._networks.functions())
        self._plan = partial(planner.plan, **self.functions)
