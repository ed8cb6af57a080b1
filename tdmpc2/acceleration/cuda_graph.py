"""A whole plan as one CUDA graph: the CPU launches it once instead of kernel by kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.nn.world_model import TaskContext, WorldModel
from tdmpc2.planner import Iteration, Plan, PlanNoise


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]  # what the graph reads
    plan: Plan  # what it writes


class GraphedPlan:
    """A planning function, captured once for every number of environments.

    The graph reads the model's weights where they lie, so it follows an optimiser's updates in place. It is captured
    anew where weights have been replaced by other tensors.

    Args:
        plan_fn: :func:`tdmpc2.planner.plan`, or a function with its arguments, on a CUDA device.
    """

    def __init__(self, plan_fn: Callable[..., Plan]) -> None:
        self._plan_fn = plan_fn
        self._captured: dict[tuple[object, ...], _Captured] = {}
        self._weights: list[int] = []  # where they lie
        self._turn = threading.Lock()  # players of one agent, in threads, share the graph's inputs and outputs

    def __call__(
        self,
        model: WorldModel,
        z: Tensor,
        task: TaskContext,
        prev_mean: Tensor,
        noise: PlanNoise,
        *,
        eval_mode: bool,
    ) -> Plan:
        """Plan as :func:`tdmpc2.planner.plan`; the result's tensors are the caller's to keep."""
        inputs = [z, *task, prev_mean, *noise]
        weights = [x.data_ptr() for x in (*model.parameters(), *model.buffers())]
        key = (eval_mode, *(None if x is None else x.shape for x in inputs))
        with self._turn, torch.cuda.device(z.device):  # streams and graphs are those of the current device
            if weights != self._weights:
                self._captured.clear()
                self._weights = weights
            if key not in self._captured:
                self._captured[key] = self._capture(model, inputs, eval_mode)
            captured = self._captured[key]
            for own, given in zip(captured.inputs, inputs, strict=True):
                if own is not None and given is not None:
                    own.copy_(given)
            captured.graph.replay()
            action, mean, last = captured.plan
            return Plan(action.clone(), mean.clone(), Iteration(*(x.clone() for x in last)))

    def _capture(self, model: WorldModel, inputs: list[Tensor | None], eval_mode: bool) -> _Captured:
        own = [None if x is None else x.clone() for x in inputs]
        z, embedding, mask, discount, prev_mean, *noise = own
        arguments = (model, z, TaskContext(embedding, mask, discount), prev_mean, PlanNoise(*noise))  # type: ignore[arg-type]
        # Compilation, library handles and memory pools have to be there before a capture, which forbids making them.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._plan_fn(*arguments, eval_mode=eval_mode)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others pin batches meanwhile
            plan = self._plan_fn(*arguments, eval_mode=eval_mode)
        return _Captured(graph, own, plan)
