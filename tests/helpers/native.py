"""Exported small models of several tasks, and the C++ programs that use the library."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tdmpc2.acceleration.cpu import library
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.export.native_model import NativeSource, read_source, write_model
from tdmpc2.export.request import Request
from tests.helpers.reference import REPO
from tests.helpers.termination import balance

PRECISIONS = ("fp32", "bf16", "int8")
TASKS = ("walker-walk", "pendulum-spin", "cheetah-run")
SIZES: dict[str, Any] = {
    "model_size": None, "mlp_dim": 40, "latent_dim": 24, "enc_dim": 40, "task_dim": 9, "num_q": 3, "num_samples": 64,
    "iterations": 3, "device": "cpu",
}  # fmt: skip


def checkpoint(path: Path, task: str = "mt30", **changes: Any) -> Path:
    """Save an agent whose outputs are far from constant, including the terminations of an ``episodic`` one."""
    agent = TDMPC2(Config(task=task, **{**SIZES, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in agent.model.named_parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.normal_(0, (3 if "_Qs.params.8" in name else 1) / fan_in**0.5, generator=generator)
            if "ln.weight" in name or name.endswith(("params.2", "params.6")):
                parameter.add_(1)
    if agent.cfg.episodic:
        ids = torch.tensor([agent.cfg.task_names.index(name) for name in TASKS]) if agent.cfg.multitask else None
        obs = torch.randn(len(TASKS), agent.cfg.obs_dim, generator=generator)
        actions = torch.rand(len(TASKS), agent.cfg.horizon, 200, agent.cfg.action_dim, generator=generator) * 2 - 1
        context = agent.model.context(ids)
        with torch.no_grad():
            z = agent.model.encode(obs, context)
        balance(agent.model, z, context if ids is None else context.unsqueeze(1), actions)
    agent.save(path)
    return path


def source_of(path: Path, precision: str, tasks: Sequence[str] = TASKS, **overrides: Any) -> NativeSource:
    """Load a checkpoint as `tdmpc2 export` does."""
    return read_source(Request(path, tasks=tuple(tasks), precision=precision, overrides=overrides))


@cache
def models_of(folder: Path, **changes: Any) -> dict[str, NativeSource]:
    """Write ``PRECISION.safetensors`` into a folder where they are missing, and return what each was written from.

    Args:
        folder: may have been filled by another process.
        changes: to the configuration.
    """
    path = folder / "model.pt"
    if not path.exists():
        checkpoint(path, **changes)
    sources = {precision: source_of(path, precision) for precision in PRECISIONS}
    for precision, source in sources.items():
        if not (written := folder / f"{precision}.safetensors").exists():
            write_model(written, source)
    return sources


def runnable() -> list[str]:
    """Name the variants of the kernels that this processor runs."""
    return [found.name for found in library.variants() if found.runs_here] if not library.reason() else ["scalar"]


def agent_program(folder: Path, made: Path, *flags: str, compiler: str = "g++") -> Path:
    """Compile tests/native/agent.cpp with the static library that was built in a directory."""
    return compiled(folder, made / "agent", *flags, str(made / "libtdmpc2.a"), compiler=compiler)


def compiled(folder: Path, program: Path, *words: str, compiler: str = "g++") -> Path:
    """Compile the source in tests/native that has the program's name."""
    source = str(REPO / "tests" / "native" / f"{program.name}.cpp")
    command = [compiler, "-std=c++17", "-O1", "-I", str(folder / "include"), "-pthread", source, *words]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return program
