"""The planner without Python, called from Python: for checks, tests and measurements."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.planner import PlanNoise
from tdmpc2.support.programs import run_program

Floats = NDArray[np.float32]
_MINUTES = 15
_NOISE = ("policy", "samples", "value", "heads", "elite", "action")


class Options(ctypes.Structure):
    """``tdmpc2_options`` of tdmpc2.h."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("threads", ctypes.c_int),
        ("environments", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_int) for name in "precision explore iterations horizon".split()),
        *((name, ctypes.c_int) for name in "num_samples num_elites num_pi_trajs".split()),
        ("instructions", ctypes.c_char_p),
    )


class _Noise(ctypes.Structure):
    """``tdmpc2_noise`` of tdmpc2.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in _NOISE)


def build(folder: Path, *definitions: str, target: str = "tdmpc2", name: str = "build") -> Path:
    """Build an exported folder with CMake.

    Args:
        folder: the folder.
        definitions: of CMake, such as ``TDMPC2_VARIANTS=scalar``.
        target: what to build.
        name: of the directory in it that is built in.

    Returns:
        That directory.

    Raises:
        ValueError: CMake or the compiler failed, or is not there.
    """
    if not (cmake := shutil.which("cmake")):
        raise ValueError(f"{folder} cannot be built here: CMake is not installed")
    made = folder / name
    defined = [f"-D{definition}" for definition in definitions]
    for command in (
        ["-S", str(folder), "-B", str(made), *defined],
        ["--build", str(made), "--target", target, "--parallel", "2"],
    ):
        try:
            done = run_program([cmake, *command], 60 * _MINUTES)
        except RuntimeError as error:
            raise ValueError(f"{folder} could not be built: {error}") from error
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it failed"]
            wrong = next((line for line in lines if "error" in line.lower()), lines[-1])
            raise ValueError(f"{folder} could not be built: {wrong}")
    return made


class NativeLibrary:
    """``libtdmpc2`` in this process.

    Args:
        path: the shared library.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        library: Any = ctypes.CDLL(str(path))
        library.tdmpc2_default_options.restype = Options
        library.tdmpc2_open.restype = ctypes.c_void_p
        library.tdmpc2_error.restype = library.tdmpc2_card.restype = ctypes.c_char_p
        library.tdmpc2_instructions.restype = library.tdmpc2_task_name.restype = ctypes.c_char_p
        self.functions = library

    def open(self, model: Path, **options: Any) -> NativeAgent:
        """Open a model; options as in tdmpc2.h.

        Raises:
            ValueError: it cannot be used, with what the library says.
        """
        chosen = self.functions.tdmpc2_default_options()
        for name, value in options.items():
            setattr(chosen, name, value)
        if not (handle := self.functions.tdmpc2_open(str(model).encode(), ctypes.byref(chosen))):
            raise ValueError(self.functions.tdmpc2_error(None).decode(errors="replace"))
        return NativeAgent(self.functions, handle)


class NativeAgent:
    """An opened model."""

    def __init__(self, functions: Any, handle: int) -> None:
        self._functions, self._handle = functions, ctypes.c_void_p(handle)
        self.environments, self.action_dim = self.number("environments"), self.number("action_dim")

    def number(self, name: str) -> int:
        """Call a function that returns a number, such as ``obs_dim``."""
        return int(getattr(self._functions, f"tdmpc2_{name}")(self._handle))

    def text(self, name: str) -> str:
        """Call a function that returns a text, such as ``card``."""
        return str(getattr(self._functions, f"tdmpc2_{name}")(self._handle).decode())

    def plan(self, obs: Floats, task: Sequence[int] | None = None, noise: PlanNoise | None = None) -> Floats:
        """Plan: observations [E, O], task ids [E] -> actions [E, A]."""
        if noise is None:
            return self._act("tdmpc2_plan", obs, task)
        held = [x.contiguous() for x in noise]
        given = _Noise(*(ctypes.c_void_p(x.data_ptr()) for x in held))
        return self._act("tdmpc2_plan_with_noise", obs, task, ctypes.byref(given))

    def policy(self, obs: Floats, task: Sequence[int] | None = None) -> Floats:
        """Act by the policy alone: observations [E, O], task ids [E] -> actions [E, A]."""
        return self._act("tdmpc2_policy", obs, task)

    def reset(self, environment: int = -1) -> None:
        """Begin an episode in one environment, -1: in all."""
        self._check(self._functions.tdmpc2_reset(self._handle, environment))

    def seed(self, seed: int) -> None:
        """Start the random numbers anew."""
        self._check(self._functions.tdmpc2_seed(self._handle, ctypes.c_uint64(seed)))

    def close(self) -> None:
        """Release everything."""
        self._functions.tdmpc2_close(self._handle)
        self._handle = ctypes.c_void_p()

    def _act(self, name: str, obs: Floats, task: Sequence[int] | None, *more: Any) -> Floats:
        x = np.ascontiguousarray(obs, np.float32)
        assert x.shape == (self.environments, self.number("obs_dim")), x.shape
        ids = None if task is None else (ctypes.c_int * self.environments)(*task)
        actions = np.zeros((self.environments, self.action_dim), np.float32)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, actions))
        observed, acted = pointers
        self._check(getattr(self._functions, name)(self._handle, observed, ids, *more, acted))
        return actions

    def _check(self, status: int) -> None:
        if status:
            raise ValueError(self.text("error") or "the agent is closed")
