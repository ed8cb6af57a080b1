"""YAML files that Hydra reads and others may have written: bounded before they become objects, errors in one line.

Ten lines of aliases to one another can stand for a thousand million entries, and Hydra would make all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import _utils

_MOST_BYTES = 1 << 20
_MOST_ENTRIES = 100_000


@contextmanager
def bounded_yaml() -> Iterator[None]:
    """Refuse files of more than 1 MB or 100,000 entries while Hydra composes a configuration.

    Raises:
        ValueError: such a file, or one that is not YAML; the message names it.
    """
    usual = _utils.get_yaml_loader
    _utils.get_yaml_loader = lambda: _bounded(usual())
    try:
        yield
    except yaml.YAMLError as error:
        raise ValueError(f"A configuration file cannot be read: {' '.join(str(error).split())}") from error
    finally:
        _utils.get_yaml_loader = usual


def _bounded(loader: Any) -> Any:
    """Return a loader that looks at the size of a file before reading it, and at its entries before making them."""

    class Bounded(loader):
        def __init__(self, stream: Any) -> None:
            self._origin = getattr(stream, "name", "a YAML text")
            size = os.fstat(stream.fileno()).st_size if hasattr(stream, "name") else len(stream)
            if size > _MOST_BYTES:
                raise ValueError(f"{self._origin} has {size:,} bytes, more than the {_MOST_BYTES:,} of a configuration")
            super().__init__(stream)

        def get_single_node(self) -> Any:
            try:
                node = super().get_single_node()
            except RecursionError as error:
                raise ValueError(f"{self._origin} is nested too deeply for a configuration") from error
            if node is not None and (count := _entries(node)) > _MOST_ENTRIES:
                many = f"{count:,} entries" if count < 10**15 else "entries without end"
                raise ValueError(f"{self._origin} has {many}, more than the {_MOST_ENTRIES:,} of a configuration")
            return node

    return Bounded


def _entries(root: Any) -> float:
    """Count the entries of a YAML document with every alias written out; infinite if one is part of itself."""
    counts: dict[int, float] = {}
    open_nodes: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, visited = stack.pop()
        children = _children(node)
        if visited:
            open_nodes.discard(id(node))
            counts[id(node)] = 1 + sum(counts[id(child)] for child in children)
        elif id(node) in open_nodes:
            return float("inf")
        elif id(node) not in counts:
            open_nodes.add(id(node))
            stack.append((node, True))
            if any(id(child) in open_nodes for child in children):
                return float("inf")
            stack += [(child, False) for child in {id(child): child for child in children}.values()]
    return counts[id(root)]


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return []
