"""dm_control and MuJoCo, imported without OpenGL: the rest of the package takes them from here.

dm_control looks for an OpenGL library when it is imported, and on a machine without one some of its attempts fail
with errors that have nothing to do with simulation. Frames are drawn by ``rendering.py`` instead, so dm_control is
told not to look, unless the user chose a backend through ``MUJOCO_GL``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _no_opengl() -> Iterator[None]:
    if "MUJOCO_GL" in os.environ:
        yield
        return
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


with _no_opengl():
    import mujoco
    from dm_control import suite
    from dm_control.rl import control
    from dm_control.utils.rewards import tolerance

__all__ = ["control", "mujoco", "suite", "tolerance"]
