"""The kernels' exponential and what is made of it keep to the errors that simd.h and exponential.h promise."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tdmpc2.acceleration.cpu import build, library
from tests.helpers.cpu_kernels import needs_library

pytestmark = [needs_library, pytest.mark.skipif(shutil.which("g++") is None, reason="builds the functions with g++")]
SOURCE = Path(__file__).with_name("functions.cpp")
VARIANTS = [found.name for found in library.variants() if found.runs_here] if not library.reason() else []
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
Doubles = NDArray[np.float64]


class Promise(NamedTuple):
    """A function in float64, the range that it is tested on, and its largest allowed error."""

    low: float
    high: float
    exact: Callable[[Doubles], Doubles]
    error: Callable[[Doubles, Doubles], Doubles]  # of x and what is exact


def spacing(y: Doubles) -> Doubles:
    """Distance of float32 numbers there."""
    return np.spacing(np.abs(y).astype(np.float32)).astype(np.float64)


ABOVE_87 = float(np.nextafter(np.float32(-87), np.float32(0)))
PROMISES = {
    "vector_exp": Promise(-86, 88, np.exp, lambda x, y: y * (2e-7 + np.abs(x) * 1.4e-8)),
    "vector_mish": Promise(
        -100, LARGEST, lambda x: x * np.tanh(np.logaddexp(0, x)),
        lambda x, y: 1.7e-7 * np.abs(x) + 2.0**-149,  # the distance of floats around 0
    ),
    "vector_tanh": Promise(-LARGEST, LARGEST, np.tanh, lambda x, y: np.full_like(x, 1.3e-7)),
    "vector_symexp": Promise(
        -88, 88, lambda x: np.sign(x) * np.expm1(np.abs(x)),
        lambda x, y: np.exp(np.abs(x)) * (4e-7 + np.abs(x) * 1.4e-8),
    ),
    "single_exponential": Promise(ABOVE_87, 0, np.exp, lambda x, y: spacing(y)),
    "single_logarithm": Promise(SMALLEST, LARGEST, np.log, lambda x, y: 1.2e-7 * np.maximum(1, np.abs(y))),
}  # fmt: skip


def order(x: float) -> int:
    """Number a float32 among all of them, from 0 for 0."""
    bits = int(np.float32(x).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def sample(low: float, high: float, count: int = 2**19) -> NDArray[np.float32]:
    """Every so many float32 numbers between two, their ends among them, and as many at equal distances."""
    numbers = np.linspace(order(low), order(high), count).astype(np.int64)
    magnitude = np.abs(numbers).astype(np.uint32).view(np.float32)
    even = np.linspace(max(low, -120.0), min(high, 120.0), count)
    return np.concatenate([np.where(numbers < 0, -magnitude, magnitude), even.astype(np.float32)])


@pytest.fixture(scope="module", params=VARIANTS)
def functions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Build the functions as the kernels of each variant that runs here are."""
    built = tmp_path_factory.mktemp(request.param) / "functions.so"
    flags = [*build.FLAGS, *build.VARIANTS[build.target_machine()][request.param], f"-DTDMPC2_VARIANT={request.param}"]
    command = ["g++", *flags, "-shared", "-I", str(build.FOLDER), str(SOURCE), "-o", str(built)]
    subprocess.run(command, check=True, timeout=300)
    return ctypes.CDLL(str(built))


def call(functions: ctypes.CDLL, name: str, x: NDArray[np.float32]) -> Doubles:
    x, out = np.ascontiguousarray(x), np.empty_like(x)
    getattr(functions, name)(ctypes.c_int64(len(x)), ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data))
    return out.astype(np.float64)


@pytest.mark.parametrize("name", PROMISES)
def test_errors_are_what_is_promised(functions: ctypes.CDLL, name: str) -> None:
    """1e-7 + |x| 2e-8 was said of exp, and 1e-7 of the logarithm: neither held."""
    low, high, exact, error = PROMISES[name]
    x = sample(low, high)
    with np.errstate(over="ignore", under="ignore"):
        want = exact(x.astype(np.float64))
        off = np.abs(call(functions, name, x) - want)
        allowed = error(x.astype(np.float64), want)
    worst = int(np.argmax(off - allowed))
    assert np.isfinite(off).all()
    assert off[worst] <= allowed[worst], (x[worst], off[worst], allowed[worst])


@pytest.mark.parametrize("name", [name for name in PROMISES if name != "single_logarithm"])  # asked of normal numbers
def test_not_a_number_stays_so(functions: ctypes.CDLL, name: str) -> None:
    assert np.isnan(call(functions, name, np.full(16, np.nan, np.float32))).all()


def test_what_no_float_holds_is_infinite_or_zero(functions: ctypes.CDLL) -> None:
    large = np.array([90, -90, 500, -np.inf] * 4, np.float32)
    assert (call(functions, "vector_symexp", large) == np.array([np.inf, -np.inf, np.inf, -np.inf] * 4)).all()
    assert not call(functions, "single_exponential", np.array([-87, -88, -1e9, -np.inf], np.float32)).any()


def test_bf16_is_rounded_as_by_torch_but_for_subnormal_numbers(functions: ctypes.CDLL) -> None:
    normal = sample(SMALLEST, LARGEST, 2**16)
    ties = (np.arange(0x3F80, 0x3FC0, dtype=np.uint32) << 16 | 0x8000).view(np.float32)  # halfway between two
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, LARGEST, -LARGEST, SMALLEST], np.float32)
    x = np.concatenate([normal, -normal, ties, special, np.zeros(8, np.float32)])
    x = x[: len(x) // 16 * 16].copy()
    got = np.empty(len(x), np.uint16)
    functions.round_to_bf16(
        ctypes.c_int64(len(x)), x.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p)
    )
    want = torch.from_numpy(x).bfloat16()
    assert torch.equal(torch.from_numpy(got).view(torch.bfloat16).nan_to_num(0.5), want.nan_to_num(0.5))
    tiny = np.full(16, 1e-39, np.float32)
    functions.round_to_bf16(
        ctypes.c_int64(16), tiny.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p)
    )
    assert set(got[:16].tolist()) <= {0, int(torch.tensor(1e-39).bfloat16().view(torch.int16))}
