"""Batches are read from named tuples, dicts and tensordicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdmpc2.data.batch import Batch

FIELDS = {
    "obs": torch.zeros(4, 2, 3),
    "action": torch.zeros(3, 2, 1),
    "reward": torch.zeros(3, 2, 1),
    "task": torch.zeros(2, dtype=torch.int64),
}


@pytest.mark.parametrize("teacher", [{}, {"teacher_reward": torch.ones(1, 2, 1)}, {"teacher_reward": None}])
def test_from_any_dict_and_tensordict_give_the_fields(teacher: dict[str, Any]) -> None:
    fields = FIELDS | teacher
    for batch in (Batch.from_any(fields), Batch.from_any(TensorDict(fields, [])), Batch.from_any(Batch(**fields))):
        assert torch.equal(batch.obs, FIELDS["obs"])
        assert batch.teacher_value is None
        assert (batch.teacher_reward is None) == (teacher.get("teacher_reward") is None)


def test_from_any_missing_field_is_named() -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "reward"}
    with pytest.raises(ValueError, match="The batch's 'reward' is missing"):
        Batch.from_any(fields)


@pytest.mark.parametrize("name", ["obs", "teacher_reward"])
def test_from_any_array_is_refused_by_name(name: str) -> None:
    """Arrays of teacher outputs used to be dropped silently, so that nothing was distilled."""
    with pytest.raises(ValueError, match=f"The batch's '{name}' is a ndarray"):
        Batch.from_any({**FIELDS, name: np.zeros((3, 2, 1))})
