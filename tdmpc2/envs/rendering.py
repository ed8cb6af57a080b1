"""Off-screen frames of a MuJoCo simulation.

dm_control's own renderer is fixed when dm_control is imported. This one needs nothing from it, so an environment
that renders can be built at any time, also after others that do not.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import sys
import weakref
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs.headless import mujoco
from tdmpc2.envs.wrappers import Action, Observation
from tdmpc2.support.programs import run_program

_PROBE_SECONDS = 60.0
_FRAME_SIZE = 384  # of pictures for people

_BACKENDS = {"linux": ("egl", "osmesa"), "darwin": ("cgl",), "win32": ("glfw",)}
_PROBE = "import sys, importlib; c = importlib.import_module(sys.argv[1]).GLContext(64, 64); c.make_current(); c.free()"


@functools.cache
def context_module() -> str:
    """Find the module of mujoco whose ``GLContext`` works on this machine, e.g. ``mujoco.egl``.

    ``MUJOCO_GL`` (or the platform PyOpenGL is already bound to) decides if set; otherwise EGL is tried before OSMesa.
    Each is tried in a process of its own: PyOpenGL binds to one platform per process and cannot change its mind.

    Raises:
        ValueError: no backend works; the message says what was tried and what to install.
    """
    variable = next((name for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM") if os.environ.get(name)), None)
    names = (os.environ[variable].lower(),) if variable else backends()
    for name in names:
        if backend_works(name):
            return f"mujoco.{name}"
    chosen = f" ({variable}={os.environ[variable]}; unset it to try the others)" if variable else ""
    raise ValueError(
        f"render_mode='rgb_array' needs an OpenGL backend, and none of {', '.join(names)} works here{chosen}. "
        "On Debian or Ubuntu: apt-get install libegl1 (EGL) or apt-get install libosmesa6 (OSMesa, no GPU needed)."
    )


def backends() -> tuple[str, ...]:
    """OpenGL backends of this platform, in the order they are tried."""
    return _BACKENDS.get(sys.platform, ("egl", "osmesa"))


def backend_works(name: str) -> bool:
    """Try an OpenGL backend, such as ``egl``, in a process of its own."""
    command = [sys.executable, "-c", _PROBE, f"mujoco.{name}"]
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    try:
        return run_program(command, _PROBE_SECONDS, env=environment).returncode == 0
    except (OSError, RuntimeError):
        return False


class Renderer:
    """Draws one camera of one model.

    Args:
        model: the compiled model; its off-screen buffer is enlarged if it is smaller than the frame.
        camera: index of the camera; -1 is the free camera.
        height, width: frame size in pixels.
    """

    def __init__(self, model: mujoco.MjModel, camera: int, height: int = 384, width: int = 384) -> None:
        self._gl = importlib.import_module(context_module()).GLContext(width, height)
        self._gl.make_current()
        size = model.vis.global_
        size.offwidth, size.offheight = max(size.offwidth, width), max(size.offheight, height)
        self._model = model
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False  # as in dm_control's pictures
        self._camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, self._camera)
        if camera >= 0:
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._target)
        self._release = weakref.finalize(self, _release, self._gl, self._target)
        atexit.register(self._release)  # runs before mujoco's own exit hook takes EGL away

    def frame(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """Draw the current state as RGB, [height, width, 3]."""
        self._gl.make_current()
        for field in range(self._model.nhfield):  # terrain may change at every reset
            mujoco.mjr_uploadHField(self._model, self._target, field)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._target)
        image = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._rect, self._target)
        return np.ascontiguousarray(image[::-1])

    def close(self) -> None:
        """Frees the graphics memory and the OpenGL context; the renderer cannot be used afterwards."""
        self._release()
        atexit.unregister(self._release)


class View(NamedTuple):
    """A simulation as a picture of it needs it."""

    model: mujoco.MjModel
    data: mujoco.MjData
    camera: int  # index; -1 is the free camera


class RenderedEnv(gymnasium.Env[Observation, Action]):
    """The pictures of an environment that MuJoCo simulates; a family of environments says only what there is to see.

    A renderer is made when a frame of its size is first asked for, and belongs to the model that it was made for:
    whoever builds another model calls :meth:`close` first.

    Args:
        task: name of the task, for the message.
        render_mode: None or ``"rgb_array"``.

    Raises:
        ValueError: another render mode, or rendering without a working OpenGL backend.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, task: str, render_mode: str | None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} of task '{task}' must be None or 'rgb_array'.")
        if render_mode is not None:
            context_module()  # fails here rather than at the first frame
        self.render_mode = render_mode
        self._renderers: dict[int, Renderer] = {}  # by size of the frame

    def view(self) -> View:
        """Return what the pictures are of."""
        raise NotImplementedError

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Draw the current state as RGB [384, 384, 3], seen by the task's own camera; None without ``render_mode``."""
        return None if self.render_mode is None else self.frame(_FRAME_SIZE)

    def frame(self, size: int) -> NDArray[np.uint8]:
        """Draw the current state as RGB [size, size, 3], seen by the task's own camera."""
        model, data, camera = self.view()
        if size not in self._renderers:
            self._renderers[size] = Renderer(model, camera, size, size)
        return self._renderers[size].frame(data)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def _release(gl: Any, target: mujoco.MjrContext) -> None:
    gl.make_current()
    target.free()
    gl.free()
