"""The order of the packages: no module imports one above it, and no imports run in a circle."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: From the bottom up. A module belongs to the longest name that it starts with; modules on one line do not import each
#: other. Entry points that keep former names alive (``__main__`` and the like) are listed with the commands.
FLOORS = (
    ("support", "tasks", "nn"),
    ("distributed", "envs", "distillation.projection"),
    ("distillation.losses",),
    ("distillation.targets",),
    ("config",),
    ("checkpoints", "tracking"),
    ("data",),
    ("nn.world_model", "nn.inputs"),
    ("noise", "planner"),
    ("distillation",),
    ("losses",),
    ("acceleration",),
    ("player", "precision"),
    ("agent",),
    ("loading",),
    ("play",),
    ("quantization",),
    ("export",),
    ("training",),
    ("studies",),
    ("commands",),
    ("__main__", "checkpoint", "checkpoints.__main__", "heldout", "data.__main__", "data.targets"),
)
#: The package itself registers the environments and resolves its public names on first use.
LAZY = "tdmpc2"


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "tdmpc2").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """Map each module to the modules of the package that it imports, anywhere in its text."""
    arrows: dict[str, set[str]] = {}
    for name, path in modules().items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tdmpc2":
                assert node.level == 0
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    targets.add(full if full in modules() else node.module)
            elif isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names if alias.name.split(".")[0] == "tdmpc2")
        arrows[name] = targets - {name}
    return arrows


def floor(module: str) -> tuple[int, str]:
    """Return the number of a module's floor and the entry of the table that it belongs to."""
    name = module.removeprefix("tdmpc2.")
    fitting = [
        (len(box), number, box)
        for number, boxes in enumerate(FLOORS)
        for box in boxes
        if name == box or name.startswith(f"{box}.")
    ]
    assert fitting, f"{module} has no floor: add it to FLOORS"
    _, number, box = max(fitting)
    return number, box


@pytest.mark.parametrize("module", [name for name in modules() if name != LAZY])
def test_module_imports_nothing_from_above(module: str) -> None:
    number, box = floor(module)
    above = [
        f"{target} (floor {floor(target)[0]})"
        for target in imports()[module]
        if target != LAZY and floor(target)[1] != box and floor(target)[0] >= number
    ]
    assert not above, f"{module} (floor {number}) imports {', '.join(above)}"


def test_imports_run_in_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in imports().get(module, set()) - {LAZY}:
                visit(target, (*path, module))
            done.add(module)

    for module in modules():
        if module != LAZY:
            visit(module, ())
