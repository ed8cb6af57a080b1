"""Modules that task names begin with, as in ``my_package:Mine-v0``: importing one executes it.

Only somebody who typed such a name, or passed it in a call, has asked for that. Names in files are data: their module
is used where it has been imported already, and is never imported because of them.
"""

from __future__ import annotations

import sys
from importlib import import_module

import gymnasium


def module_of(name: str) -> str:
    """The module that a task's name begins with; empty if it has none."""
    module, colon, _ = name.partition(":")
    return module if colon else ""


def import_module_of(name: str) -> None:
    """Import the module that a task's name begins with, since the user has named the task.

    Raises:
        ValueError: that is no name of a module.
        ModuleNotFoundError: it is not installed.
    """
    module = module_of(name)
    if not module:
        return
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"task={name}: '{module}' is no name of a Python module, as in my_package:Mine-v0")
    import_module(module)


def check_imported(name: str) -> None:
    """Raise ``ValueError`` where building a task would import a module that the user has not named."""
    module = module_of(name)
    if ":" in name and module not in sys.modules and name not in gymnasium.registry:
        raise ValueError(
            f"The task '{name}' names the module '{module}', which a file cannot make run: if you trust it, name the "
            f"task yourself, as in task={name}"
        )
