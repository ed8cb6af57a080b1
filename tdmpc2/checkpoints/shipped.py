"""Models that come with the project: one row each, found by name.

They lie in the folder ``models/`` of the repository, and a wheel has copies of them. models/README.md lists the same
rows for readers. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from tdmpc2.support.reading import open_regular
from tdmpc2.support.text import shown
from tdmpc2.support.version import source_tree
from tdmpc2.tasks import nearest


class Shipped(NamedTuple):
    """A file that comes with the project."""

    file: str
    bytes: int
    sha256: str


#: By the name that :func:`tdmpc2.load_agent` takes.
SHIPPED: dict[str, Shipped] = {
    "student": Shipped("student.pt", 2888458, "6690eed698d83ef5dc1dd93a8e0a214d97d3c85a2b5ad3332a1dadef9dd61d34"),
    "walker": Shipped("walker.pt", 2873418, "237d019e64ddf971d7fba031a9df0d5af66c0080e61133c459ea6aaf7a185eb3"),
    "cartpoles": Shipped("cartpoles.pt", 2873354, "e925b9cfd6d3f290ac9b5059383842e7b1c8730f283c21414508d5ee3bf937a3"),
    "cheetahs": Shipped("cheetahs.pt", 2873482, "a4d5a34cb25e16daad706edce0af4278ab496f0a14b2a727e3adcea78b6cf4a3"),
    "trio": Shipped("trio.pt", 2872970, "c384d73018c07d257c125bd537dac77349096f880b9461eec771ab78fee4cbde"),
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")  # no path, no ending


def is_name(source: str | os.PathLike[str]) -> bool:
    """Tell if something has the form of a model's name and no file is called so; a directory of that name is none."""
    return isinstance(source, str) and _NAME.fullmatch(source) is not None and not Path(source).is_file()


def find(name: str | os.PathLike[str]) -> Path | None:
    """Find the file of a model that comes with the project; None if no model is called so, or a file is.

    Raises:
        ValueError: its file is not there, or the name is nearly one of a model.
    """
    text = os.fspath(name)
    return shipped_file(text) if is_name(text) and (text in SHIPPED or nearest(text, SHIPPED)) else None


def shipped_file(name: str) -> Path:
    """Find the file of a model that comes with the project.

    Raises:
        ValueError: there is no such model, or its file is missing or another one; the message says what to do.
    """
    if name not in SHIPPED:
        known = ", ".join(SHIPPED) or "none yet"
        raise ValueError(
            f"{shown(name)} is neither a file nor the name of a model that comes with this version ({known})."
            f"{nearest(name, SHIPPED)} Name a checkpoint file, or one on a hub, hf://user/name: models/README.md says "
            "where to get some"
        )
    row = SHIPPED[name]
    path = _folder() / row.file
    there = path.is_file()
    if not there or _sha256(path) != row.sha256:
        raise ValueError(
            f"{name}: {path} is {'not the file of this version' if there else 'missing'}. It is in the folder models/ "
            f"of the project's repository, {row.bytes:,} bytes, sha256 {row.sha256}: put it there"
        )
    return path


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder() -> Path:
    root = source_tree()
    return Path(__file__).parent / "models" if root is None else root / "models"
