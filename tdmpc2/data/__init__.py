"""Offline data: chunk files and stores on disk, episodes in memory, slices for training.

The names below are what other programs use; they are resolved on first use. A directory of one's own data is made by
:func:`write_episodes` and turned into a store by :func:`import_episodes`, if it is large; training reads both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdmpc2.data.dataset import EpisodeDataset
    from tdmpc2.data.episodes import write_episodes
    from tdmpc2.data.store.importer import import_episodes
    from tdmpc2.data.store.store import EpisodeStore

__all__ = ["EpisodeDataset", "EpisodeStore", "import_episodes", "write_episodes"]

_HOMES = {
    "EpisodeDataset": "tdmpc2.data.dataset",
    "EpisodeStore": "tdmpc2.data.store.store",
    "import_episodes": "tdmpc2.data.store.importer",
    "write_episodes": "tdmpc2.data.episodes",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tdmpc2.data' has no attribute '{name}'")
