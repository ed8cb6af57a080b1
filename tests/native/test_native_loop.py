"""The control loop without Python: it allocates nothing, and a plan that fails does not change the agent."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.export.native_library import NativeLibrary
from tdmpc2.export.native_model import write_model
from tests.helpers.native import checkpoint, compiled, runnable, source_of
from tests.native.test_native_damage import put_together, taken_apart

pytestmark = pytest.mark.slow  # the library is built first


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("instructions", runnable())
@pytest.mark.parametrize("name", ["int8", "episodic/int8"])
def test_control_loop_allocates_nothing(
    run: Callable[..., str], folder: Path, episodic: Path, name: str, threads: int, instructions: str
) -> None:
    """Plans, policy steps, resets and errors allocate nothing, in whichever thread they are called."""
    said = run("allocations", folder / f"{name}.safetensors", threads, instructions)
    acting, elsewhere, before = (int(part.split()[0]) for part in said.split(",")[:3])
    assert (acting, elsewhere) == (0, 0), said
    assert before > 10  # allocations are counted at all
    assert said.endswith("NaN refused\n")


def test_control_loops_of_agents_that_share_threads_allocate_nothing(
    run: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    """Threads started for a small model also help a large one, and a forked process allocates nothing either."""
    large = tmp_path / "large.safetensors"
    write_model(large, source_of(checkpoint(tmp_path / "model.pt", mlp_dim=300, num_samples=16), "fp32"))
    assert run("shared", large, folder / "fp32.safetensors") == "0 while acting, 0 in a fork\n"


def test_control_loop_without_more_threads_goes_on_and_does_not_ask_again(
    run: Callable[..., str], folder: Path
) -> None:
    """If the system gives no thread when a model is opened, only the next opened agent asks again."""
    said = run("refused", folder / "int8.safetensors")
    assert said == "0 while acting, 1 threads asked for at first, 0 by plans, 3 later\n"


def test_library_that_is_closed_while_its_threads_sleep_harms_nothing(
    folder: Path, built: Path, tmp_path: Path
) -> None:
    """A plug-in may be closed and opened again; its first call in a new thread allocates nothing either.

    Some compilers keep libraries loaded by themselves, so the NODELETE mark is checked, too.
    """
    said = subprocess.check_output(["readelf", "-d", built / "libtdmpc2.so"], text=True)
    assert "NODELETE" in said
    program = compiled(folder, tmp_path / "plugin", "-ldl")
    words = [program, built / "libtdmpc2.so", folder / "int8.safetensors"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "0 while acting\n"), done.stderr


def changed(path: Path, target: Path, name: str, place: tuple[slice, ...], value: float) -> None:
    """Write a copy of a float32 model with other numbers in part of a tensor."""
    header, data = taken_apart(path.read_bytes())
    start, end = header[name]["data_offsets"]
    numbers = np.frombuffer(data[start:end], np.float32).reshape(header[name]["shape"]).copy()
    numbers[place] = value
    target.write_bytes(put_together(header, data[:start] + numbers.tobytes() + data[end:]))


def test_plan_without_a_finite_value_is_an_error_and_changes_nothing(
    folder: Path, opened: NativeLibrary, tmp_path: Path
) -> None:
    """Rewards that are no numbers count as zero; a plan of nothing else used to be noise with the status OK."""
    path = tmp_path / "model.safetensors"
    whole = slice(None)
    changed(folder / "fp32.safetensors", path, "task_embeddings", (whole, slice(1)), 0.0)
    changed(path, path, "task_embeddings", (slice(1, 2), slice(1)), 1e20)
    changed(path, path, "reward.0.weight", (whole, slice(24, 25)), 1e30)
    agent, undisturbed = (opened.open(path, environments=2) for _ in range(2))
    obs = np.full((2, 24), 0.2, np.float32)
    for one in (agent, undisturbed):
        one.plan(obs, [0, 0])
        one.reset(1)
    with pytest.raises(ValueError, match=re.escape("Environment 1: no value of its plan is finite")):
        agent.plan(obs, [0, 1])
    assert np.array_equal(agent.plan(obs, [0, 0]), undisturbed.plan(obs, [0, 0]))
