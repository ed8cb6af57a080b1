"""The C++ library of the kernels, built when the package is installed, and the variant of it that this process uses.

The library holds one variant for each instruction set. The last that the processor can run and that computes what the
scalar one does is used; ``TDMPC2_KERNELS`` names another, or ``off``. The scalar variant is for tests alone: PyTorch is
faster.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdmpc2.acceleration.cpu.build import FOLDER, LIBRARY, sources_id

VARIABLE, OFF, SCALAR = "TDMPC2_KERNELS", "off", "scalar"
_PATH = FOLDER / LIBRARY
_log = logging.getLogger("tdmpc2")


class _Functions(ctypes.Structure):
    """``Kernels`` of kernels.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("packed_bytes", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int)),
        *(
            (name, ctypes.CFUNCTYPE(None))  # ctypes passes more arguments as they come
            for name in (
                *"pack normed_linear estimate_value policy_rollout norm_mish norm_mish_backward".split(),
                *"encode refit scratch_bytes".split(),
            )
        ),
    )


class Kernels:
    """The functions of one variant, with the arguments of kernels.h.

    Attributes:
        name: of the variant.
        packed_bytes, pack, normed_linear, estimate_value, policy_rollout, norm_mish, norm_mish_backward, encode, refit:
            functions.
    """

    packed_bytes: Callable[..., int]
    pack: Callable[..., None]
    normed_linear: Callable[..., None]
    estimate_value: Callable[..., None]
    policy_rollout: Callable[..., None]
    norm_mish: Callable[..., None]
    norm_mish_backward: Callable[..., None]
    encode: Callable[..., None]
    refit: Callable[..., None]

    def __init__(self, functions: _Functions) -> None:
        self.name = functions.name.decode()
        for name, *_ in functions._fields_[1:]:
            setattr(self, name, getattr(functions, name))


class Variant:
    """One variant of the library.

    Attributes:
        name: of its instruction set.
        kernels: its functions.
        agrees: tells whether it computes what the scalar one does, on a small layer in every format. Only if it runs.
    """

    def __init__(self, name: str, kernels: Kernels, runs: Callable[[], bool], agrees: Callable[[], bool]) -> None:
        self.name, self.kernels, self.agrees = name, kernels, agrees
        self._runs = runs

    @functools.cached_property
    def runs_here(self) -> bool:
        """True if this processor has the instructions. For the tiles of AMX Linux is asked, which then grants them."""
        return self._runs()


def load() -> Kernels:
    """Return the functions of the variant in use.

    Raises:
        RuntimeError: there is none, with :func:`reason`.
    """
    kernels, why = _load()
    if kernels is None:
        raise RuntimeError(f"The CPU kernels are not available: {why}")
    return kernels


def reason() -> str:
    """Say why there are no kernels here, in one line; empty if there are."""
    return _load()[1]


def is_built() -> bool:
    """True if the library is there and of the sources beside it, whatever this processor makes of it."""
    try:
        opened(_PATH)
    except RuntimeError:
        return False
    return True


def identity() -> str:
    """Name the build and the variant in use, for what is remembered about them."""
    return f"{sources_id()}-{load().name}"


@functools.cache
def variants() -> tuple[Variant, ...]:
    """List what the library holds, each faster than those before it.

    Raises:
        RuntimeError: it is not there, or was built from other sources.
    """
    library = opened(_PATH)
    found: list[Variant] = []
    while functions := library.tdmpc2_kernels(len(found)):
        kernels, index = Kernels(functions.contents), len(found)
        agrees = functools.partial(_is_true, library.tdmpc2_agrees, index)
        runs = functools.partial(_is_true, library.tdmpc2_runs_here, index)
        found.append(Variant(kernels.name, kernels, runs, agrees))
    return tuple(found)


def opened(path: Path) -> ctypes.CDLL:
    """Load the library, if it is that of the sources beside it.

    Raises:
        RuntimeError: it cannot be loaded, or it is not, with what to do.
    """
    if not path.is_file():
        raise RuntimeError("they were not built when tdmpc2 was installed (install g++, then make setup or pip again)")
    try:
        library: Any = ctypes.CDLL(str(path))
        library.tdmpc2_sources.restype = ctypes.c_char_p
        library.tdmpc2_kernels.restype = ctypes.POINTER(_Functions)
        built_from = library.tdmpc2_sources().decode()
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"{' '.join(str(error).split())} (to build it again: make setup)") from error
    if built_from != sources_id(path.parent):
        raise RuntimeError(f"{path} was built from other sources than those beside it: make setup")
    return library


def _is_true(function: Callable[[int], int], index: int) -> bool:
    return bool(function(index))


@functools.cache
def _load() -> tuple[Kernels | None, str]:
    """The variant to use, or why there is none."""
    wanted = os.environ.get(VARIABLE, "").strip()
    if wanted == OFF:
        return None, f"{VARIABLE}={OFF}"
    try:
        candidates = list(variants())
    except RuntimeError as error:
        return None, str(error)
    if wanted:
        chosen = [variant for variant in candidates if variant.name == wanted and variant.runs_here]
        if not chosen:
            usable = [variant for variant in candidates if variant.runs_here]
            names = ", ".join(variant.name for variant in usable)
            return None, f"{VARIABLE}={wanted} is not among the variants that run here: {names}, {OFF}"
        return chosen[0].kernels, ""
    wrong = []
    for variant in reversed([variant for variant in candidates if variant.runs_here]):
        if variant.name == SCALAR:
            break
        if variant.agrees():
            return variant.kernels, ""
        wrong.append(variant.name)
        _log.warning("The %s kernels compute something else than the scalar ones here and are not used", variant.name)
    if wrong:
        return None, f"those of {', '.join(wrong)} compute something else than the scalar ones here (please report it)"
    return None, f"this processor has none of the instructions of {', '.join(v.name for v in candidates[1:]) or 'any'}"
