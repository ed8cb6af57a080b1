"""Tensors without numbers, on which an update that reads one on the host fails as it would be slow on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_


@contextmanager
def updates_as_on_a_gpu() -> Iterator[None]:
    """Make tensors fake; gradients are clipped as on a GPU, since on a CPU their norm is looked at."""
    with FakeTensorMode(), mock.patch("tdmpc2.agent.clip_gradients", clip_grad_norm_):
        yield
