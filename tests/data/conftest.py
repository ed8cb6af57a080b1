"""A fixture that notes how much an import reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import Tensor

from tdmpc2.data.store.parts import Part


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Note the number of episodes of each read."""
    counts: list[int] = []
    read = Part.read

    def note(self: Part, episodes: Tensor) -> dict[str, Tensor]:
        counts.append(len(episodes))
        return read(self, episodes)

    monkeypatch.setattr(Part, "read", note)
    return counts
