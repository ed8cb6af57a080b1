"""Spaces as Minari's ``metadata.json`` describes them, and the vectors that observations and actions become.

Only numbers are read: no module that a file names is imported, and no environment is built for its spaces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.data.exchange.foreign import Floats
from tdmpc2.support.text import cut, shown

_MOST = 2**20  # numbers of an observation or action


@dataclass(frozen=True)
class Leaf:
    """A vector or array of numbers in an observation or action.

    Attributes:
        keys: that lead to it; empty where it is all there is.
        shape: of one step.
        dtype: numpy's name.
        low, high: bounds, [n].
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Numbers of one step."""
        return math.prod(self.shape)


def read_space(origin: str, text: Any) -> tuple[Leaf, ...]:
    """Read a space from a metadata file: a Box, or a Dict of such, in the order in which they are laid end to end.

    That is the order of the keys, as Gymnasium sorts them and as the environments here observe them.

    Args:
        origin: for messages.
        text: JSON.

    Raises:
        ValueError: another kind of space, or a damaged one.
    """
    try:
        content = json.loads(text) if isinstance(text, str) else text
        leaves = tuple(_leaves(content, ()))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = cut(str(error)) if type(error) is ValueError else f"it is {shown(text)}"
        raise ValueError(f"{origin}: {reason}") from error
    if not 0 < sum(leaf.size for leaf in leaves) <= _MOST:
        raise ValueError(f"{origin} has {sum(leaf.size for leaf in leaves):,} numbers, expected 1 to {_MOST:,}")
    return leaves


def _leaves(content: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Leaf]:
    kind = content["type"]
    if kind == "Dict":
        for key in sorted(content["subspaces"]):
            yield from _leaves(content["subspaces"][key], (*keys, str(key)))
        return
    if kind != "Box":
        raise ValueError(f"{'.'.join(keys) or 'it'} is a {cut(str(kind), 40)}, and only vectors of numbers are read")
    shape, dtype = tuple(int(size) for size in content["shape"]), np.dtype(content["dtype"])
    if dtype.kind not in "fiu" or any(not 0 <= size <= _MOST for size in shape) or len(shape) > 8:
        raise ValueError(f"{'.'.join(keys) or 'it'} is of {dtype} and shape {shown(shape)}")
    bounds = [np.asarray(content[name], np.float64).reshape(-1) for name in ("low", "high")]
    low, high = (np.broadcast_to(bound, (math.prod(shape),)) for bound in bounds)
    yield Leaf(keys, shape, dtype.name, low, high)


def flatten(leaves: tuple[Leaf, ...], value_of: Callable[[Leaf], NDArray[Any]], rows: int, origin: str) -> Floats:
    """Lay the parts of observations or actions end to end, [rows, n] float32.

    Args:
        leaves: the parts.
        value_of: reads one, [rows, *shape].
        rows: how many there must be.
        origin: for messages.

    Raises:
        ValueError: one has another shape or holds no numbers.
    """
    parts = []
    for leaf in leaves:
        values = value_of(leaf)
        if values.shape != (rows, *leaf.shape) or values.dtype.kind not in "fiu":
            name = ".".join(leaf.keys) or "it"
            raise ValueError(
                f"{origin}: {name} has the shape {values.shape} of {values.dtype}, expected {(rows, *leaf.shape)}"
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
            parts.append(values.reshape(rows, -1).astype(np.float32))
    return np.concatenate(parts, axis=1)


def to_unit(leaves: tuple[Leaf, ...], origin: str) -> Callable[[Floats], Floats]:
    """Make the function that scales actions from their bounds to [-1, 1]; where these are the bounds, it changes none.

    Raises:
        ValueError: actions are whole numbers, or have no finite bounds or nothing to choose.
    """
    low, high = (np.concatenate([getattr(leaf, name) for leaf in leaves]) for name in ("low", "high"))
    whole = any(np.dtype(leaf.dtype).kind != "f" for leaf in leaves)
    if whole or not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"{origin}: actions must be real numbers with finite bounds, low below high in every entry")
    if (low == -1).all() and (high == 1).all():
        return lambda action: action
    return lambda action: (2 * (action.astype(np.float64) - low) / (high - low) - 1).astype(np.float32)
