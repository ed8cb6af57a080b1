"""Metrics and the console."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tdmpc2.tracking.logger import Logger, read_scalars
from tests.helpers.tracking import OFF, Terminal, config

# -- values -----------------------------------------------------------------------------------------------------------


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_device_values_are_read_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers: list[torch.Size] = []
    tolist = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        transfers.append(tensor.shape)
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    metrics: dict[str, Any] = {f"m{i}": torch.tensor(float(i), requires_grad=True) for i in range(5)}
    metrics |= {"count": 7, "half": torch.tensor([1.5], dtype=torch.bfloat16), "big": torch.tensor(1 / 3).double()}
    with CountOps() as ops:
        values = read_scalars(metrics)
    assert transfers == [(7,)]
    assert ops.names.count("_local_scalar_dense") == 0, "a value was read on its own"
    assert list(values) == list(metrics)
    assert values == {**{f"m{i}": float(i) for i in range(5)}, "count": 7, "half": 1.5, "big": values["big"]}
    assert values["big"] == pytest.approx(1 / 3, abs=1e-7)


def test_a_metric_that_is_no_scalar_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'q' has shape \[2\]"):
        read_scalars({"q": torch.zeros(2)})


# -- console ----------------------------------------------------------------------------------------------------------


def test_plain_console_lines(tmp_path: Path, clock: list[float]) -> None:
    stream = io.StringIO()
    with Logger(config(tmp_path), total_steps=10_000, stream=stream) as logger:
        clock[0] = 4.0
        logger.log(1_000, {"pi_loss": 0.25, "total_loss": torch.tensor(1.5)})
        clock[0] = 6.0
        logger.log(2_000, {"pi_loss": 0.5, "total_loss": torch.tensor(1.25)})
        logger.log(2_000, {"score": 31.0625}, group="eval")
        logger.message("[saved] x.pt")
    assert stream.getvalue().splitlines() == [
        OFF,
        "step 1,000/10,000 (10%)   250.0 it/s   ETA 0:00:36   total_loss 1.5   pi_loss 0.25",
        "step 2,000/10,000 (20%)   500.0 it/s   ETA 0:00:24   total_loss 1.25   pi_loss 0.5",
        "eval: step 2,000   score 31.06",
        "[saved] x.pt",
    ]


def test_a_terminal_has_one_live_line(tmp_path: Path) -> None:
    stream = Terminal()
    with Logger(config(tmp_path), total_steps=100, stream=stream) as logger:
        for step in range(1, 101):
            logger.log(step, {f"loss{i}": 1 / step for i in range(20)})
        logger.log(100, {"score": 5.0}, group="eval")
    first, evaluation, live = stream.screen()
    assert (first, evaluation) == (OFF, "eval: step 100   score 5")
    assert live.startswith("step 100/100 (100%)")
    assert len(live) <= 80, "cut at the width of the terminal"
