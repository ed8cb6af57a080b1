"""Two things dm_control 1.0.28 assumes in its quadruped domain, and what to do where they do not hold."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np

from tdmpc2.envs.headless import mujoco


def repair(physics: Any, task: str) -> None:
    """Prepares the physics of a quadruped task that was just loaded.

    - Sensors are looked up with ``numpy.in1d``, which numpy 2.4 removed: the cache of that look-up is filled instead.
    - ``escape`` sends its new terrain to an OpenGL context at every reset, making one if there is none. Frames are not
      drawn by dm_control here, so it gets a context that ignores the terrain.
    """
    for names in [("GYRO", "ACCELEROMETER"), ("FORCE", "TORQUE"), ("RANGEFINDER",)]:
        kinds = tuple(int(getattr(mujoco.mjtSensor, f"mjSENS_{name}")) for name in names)
        ids = np.flatnonzero(np.isin(physics.model.sensor_type, kinds))
        physics._sensor_types_to_names[kinds] = [physics.model.id2name(i, "sensor") for i in ids]
    if task == "escape":
        executor = SimpleNamespace(call=lambda *_: None)
        nothing = SimpleNamespace(ptr=None, make_current=lambda: nullcontext(executor), free=lambda: None)
        physics._contexts = SimpleNamespace(gl=nothing, mujoco=nothing)
