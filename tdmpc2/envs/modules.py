"""Modules that task names begin with, as in ``my_package:Mine-v0``: importing one executes it.

Only somebody who typed such a name, or passed it in a call, has asked for that. Names in files are data: their module
is used where it has been imported already, and is never imported because of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import gymnasium

from tdmpc2.support.extras import extra_of, install_module


def module_of(name: str) -> str:
    """The module that a task's name begins with; empty if it has none."""
    module, colon, _ = name.partition(":")
    return module if colon else ""


def import_module_of(name: str) -> None:
    """Import the module that a task's name begins with, since the user has named the task.

    Raises:
        ValueError: that is no name of a module.
        ModuleNotFoundError: Python does not find it, and how it would; or it does not find one that it imports.
    """
    module = module_of(name)
    if not module:
        return
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"task={name}: '{module}' is no name of a Python module, as in my_package:Mine-v0")
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise ModuleNotFoundError(f"{error}: {_remedy(module)}", name=error.name) from error


def _remedy(module: str) -> str:
    """Say how Python finds a module that it has not found."""
    if extra_of(module):
        return install_module(module)
    path = Path(*module.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return "it lies in this directory, so type PYTHONPATH=. before the command"
    return "install it, or name its directory before the command, as in PYTHONPATH=DIRECTORY"


def check_imported(name: str) -> None:
    """Raise ``ValueError`` where building a task would import a module that the user has not named."""
    module = module_of(name)
    if ":" in name and module not in sys.modules and name not in gymnasium.registry:
        raise ValueError(
            f"The task '{name}' names the module '{module}', which a file cannot make run: if you trust it, name the "
            f"task yourself, as in task={name}"
        )
