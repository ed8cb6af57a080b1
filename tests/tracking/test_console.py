"""Metrics and the console."""

from __future__ import annotations

import io
import re
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


def test_read_scalars_makes_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_read_scalars_of_other_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'q' has shape \[2\]"):
        read_scalars({"q": torch.zeros(2)})


# -- console ----------------------------------------------------------------------------------------------------------


def test_logger_on_plain_console_prints_lines(tmp_path: Path, clock: list[float]) -> None:
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
        "step 1,000/10,000 (10%)   250.0 it/s   ETA 0:00:36   total 1.5   pi 0.25",
        "step 2,000/10,000 (20%)   500.0 it/s   ETA 0:00:24   total 1.25   pi 0.5",
        "eval: step 2,000   score 31.06",
        "[saved] x.pt",
    ]


def test_training_line_terminal_is_redrawn_in_place(tmp_path: Path) -> None:
    stream = Terminal()
    with Logger(config(tmp_path), total_steps=100, stream=stream) as logger:
        for step in range(1, 101):
            logger.log(step, {"total_loss": 1 / step})
        logger.log(100, {"score": 5.0}, group="eval")
    first, evaluation, live = stream.screen()
    assert (first, evaluation) == (OFF, "eval: step 100   score 5")
    assert live.startswith("step 100/100 (100%)")
    assert live.endswith("total 0.01")


#: Losses of an update that distils two targets, with numbers as wide as they get.
DISTILLING = {
    "consistency_loss": -1.2345e-05, "reward_loss": 2.6123, "value_loss": 2.6217, "distillation_loss": 1.0601e-05,
    "distillation_value_loss": 4.4901, "total_loss": 1.5351, "grad_norm": 1.9651, "pi_loss": -0.0011972,
    "distillation_factor": 0.5, "pi_grad_norm": 0.12, "pi_scale": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 100])
def test_training_line_narrow_terminal_shows_every_loss_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """At 80 and 100 columns the losses used to be cut off, the distillation loss first of all."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Logger(config(tmp_path), total_steps=1_000_000, stream=stream) as logger:
        logger.log(123_400, DISTILLING, data_wait=0.03)
        logger.log(123_500, DISTILLING, data_wait=0.03)
    _, *lines = stream.screen()
    assert len(lines) <= 3
    assert all(len(line) <= columns for line in lines)
    shown = "   ".join(lines)
    assert "…" not in shown
    for part in (
        "total 1.535", "distill 1.06e-05", "distill value 4.49", "consistency -1.234e-05", "reward 2.612",
        "value 2.622", "pi -0.001197", "grad 1.965",
    ):  # fmt: skip
        assert part in shown.split("   ")


def test_train_log_keeps_every_line_with_its_time(tmp_path: Path) -> None:
    """On a terminal each training line replaces the last one, so train.log has to keep them."""
    with Logger(config(tmp_path), total_steps=20, stream=Terminal()) as logger:
        logger.log(10, {"total_loss": 2.0})
        logger.log(20, {"total_loss": 1.0})
        logger.log(20, {"score": 5.0}, group="eval")
    with Logger(config(tmp_path), total_steps=30, start_step=20, stream=Terminal()) as logger:
        logger.log(30, {"total_loss": 0.5})
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in lines)
    texts = [line[21:] for line in lines]
    assert texts[0] == texts[4] == OFF
    assert [text.split()[1] for text in texts if text.startswith("step")] == ["10/20", "20/20", "30/30"]
    assert texts[3] == "eval: step 20   score 5"
    assert texts[5].endswith("total 0.5")


def test_train_log_torn_line_is_ended_first(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("2026-01-01 00:00:00  step 1")
    with Logger(config(tmp_path), total_steps=1, start_step=1, stream=io.StringIO()):
        pass
    torn, new = (tmp_path / "train.log").read_text().splitlines()
    assert torn.endswith("step 1")
    assert new.endswith(OFF)
