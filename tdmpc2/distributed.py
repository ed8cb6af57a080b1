"""The processes of one training run, and what they tell one another: plain ``torch.distributed``.

A run of N processes computes what one process computes. Every process draws the whole batch's rows and random numbers
and takes its share of them; gradients are averaged, values and task ids that a batch statistic needs are gathered.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tdmpc2.support.runtime import resolve_device

P = ParamSpec("P")
T = TypeVar("T")

#: How long a process waits for another one that is silent but has not ended, in an update and in a longer phase
#: (loading, evaluating). One that has ended is noticed at once, because its connections are closed.
_UPDATE_TIMEOUT, _PHASE_TIMEOUT = timedelta(minutes=10), timedelta(days=1)
_BUCKET = 2**24  # elements that are added up at once: 64 MB


@dataclass(frozen=True)
class ProcessGroup:
    """One of the N processes that train together. By default it is alone, and every method returns what it is given.

    All processes call the same methods in the same order.

    Attributes:
        rank: its number, from 0.
        world_size: N.
        control: a group that exchanges through main memory, for waits of any length; None if alone.
    """

    rank: int = 0
    world_size: int = 1
    control: Any = None

    @property
    def main(self) -> bool:
        """True for the process that prints, logs and saves."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a batch of all processes.

        Raises:
            ValueError: the batch cannot be split evenly.
        """
        own, rest = divmod(batch_size, self.world_size)
        if rest:
            raise ValueError(
                f"batch_size={batch_size} is the batch of all {self.world_size} processes and must be a multiple "
                f"of their number: use {self.world_size * (own + 1)}"
            )
        return slice(self.rank * own, (self.rank + 1) * own)

    def part(self, count: int) -> slice:
        """Number the things that are this process's, of ``count`` that are split as evenly as they can be."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes, [B, ...] -> [N B, ...], without gradient."""
        if self.world_size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        _call(dist.all_gather, parts, x.contiguous())
        return torch.cat(parts)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their mean over the processes, in few large messages; the same bits in every process."""
        if self.world_size == 1:
            return
        sums = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            sums.append((bucket, flat, _call(dist.all_reduce, flat, async_op=True)))
        for bucket, flat, work in sums:
            _call(work.wait)
            parts = flat.div_(self.world_size).split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view_as(t) for part, t in zip(parts, bucket, strict=True)])

    def from_main(self, make: Callable[[], T]) -> T:
        """Give all processes what the main one makes: plain values, and tensors, which arrive in main memory."""
        if self.world_size == 1:
            return make()
        buffer = io.BytesIO()
        if self.main:
            torch.save(value := make(), buffer)
        message = [buffer.getvalue()]
        _call(dist.broadcast_object_list, message, src=0, group=self.control)
        return value if self.main else torch.load(io.BytesIO(message[0]), map_location="cpu", weights_only=True)

    def collect(self, value: T) -> list[T]:
        """The objects of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        _call(dist.all_gather_object, values, value, group=self.control)
        return values

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the others enter when the main process has left it, so that they find the files it made."""
        if not self.main:
            self.collect(None)
        yield
        if self.main:
            self.collect(None)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes of this run: those of torchrun or submitit, or of whoever sets the variables torchrun sets.

    Only the main process prints to standard output. With CUDA, ``cuda`` means the GPU of LOCAL_RANK from here on.

    Args:
        device: as in the configuration: ``auto``, ``cuda`` or ``cpu``.

    Raises:
        ValueError: a device that several processes cannot use, or the others cannot be reached; later, wherever
            processes talk: another one has ended.
    """
    _export_submitit()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield ProcessGroup()
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = _choose_backend(device, world_size)
    if not dist.is_initialized():  # once: a multirun trains several times, and addresses cannot be exchanged anew
        _call(dist.init_process_group, backend, timeout=_UPDATE_TIMEOUT)
        atexit.register(dist.destroy_process_group)
    control = _call(dist.new_group, backend="gloo", timeout=_PHASE_TIMEOUT)
    group = ProcessGroup(rank, world_size, control)
    try:
        with contextlib.ExitStack() as stack:
            if not group.main:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield group
            group.collect(None)  # none leaves before all are done: the main process may be the meeting point
    except Exception:  # of any kind, and raised again: only the way the process ends changes
        atexit.unregister(dist.destroy_process_group)  # it would wait for processes that are gone
        raise


def _choose_backend(device: str, world_size: int) -> str:
    """Name the way in which tensors of the device are exchanged; chooses the GPU of this process."""
    if ":" in device:
        raise ValueError(f"device={device} is one device for {world_size} processes: use auto or cuda")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        # Where the launcher shows each process a GPU of its own, that one has number 0 for all of them.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    kind = resolve_device(device).type
    if kind not in ("cuda", "cpu"):
        raise ValueError(f"device={kind} trains with one process, not {world_size}: use cpu, or start one")
    return "nccl" if kind == "cuda" and dist.is_nccl_available() else "gloo"


def _export_submitit() -> None:
    """Inside a submitit job of several tasks, set what torchrun would have set."""
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return function(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: another one has ended or cannot be "
            f"reached ({str(error).splitlines()[0]}). See its message; the same command goes on from what was saved"
        ) from error
