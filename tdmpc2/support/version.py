"""The version of the package, whose one home is ``pyproject.toml``."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "tdmpc2-opt"  # `tdmpc2` itself belongs to the original TD-MPC2


def source_tree() -> Path | None:
    """Root of the source tree this code runs from; None for an installed copy."""
    root = Path(__file__).resolve().parents[2]
    source = root / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            return root
    return None


def version() -> str:
    """Version of the code that runs: a source tree's own, else the installed distribution's.

    The source comes first because what an editable installation remembers is the version it was installed at.
    """
    root = source_tree()
    if root is not None:
        return str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
