"""The lowest versions that pyproject.toml allows, as constraints: ``python tests/oldest.py > oldest.txt``.

``make test-oldest`` runs the tests with them, since a lower bound that was never tried may be wrong.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

#: Name, extras, and the version of ``==`` or ``>=``.
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?[=>]=([\w.]+)")


def oldest(text: str) -> list[str]:
    """Name the lowest version of each package that a pyproject.toml asks for, including optional ones.

    Args:
        text: content of the file.

    Raises:
        ValueError: a package without a lower bound.
    """
    project = tomllib.loads(text)["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    lines = []
    for requirement in wanted:
        if requirement.startswith(project["name"]):
            continue  # its own extras
        if (match := _REQUIREMENT.match(requirement)) is None:
            raise ValueError(f"{requirement} in pyproject.toml has no lower bound: add one that the tests pass with")
        lines.append(f"{match[1]}=={match[2]}")
    return sorted(set(lines))


if __name__ == "__main__":
    print(*oldest((Path(__file__).parents[1] / "pyproject.toml").read_text()), sep="\n")
