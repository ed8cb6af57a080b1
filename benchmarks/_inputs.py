"""Data and models to measure with: random ones where a time does not depend on them."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import REPO
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.shipped import find
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.chunk_form import Layout

#: Configuration under --quick.
SMALL: dict[str, Any] = {
    "model_size": None, "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 8, "batch_size": 16,
    "num_samples": 16, "num_elites": 4, "num_pi_trajs": 4, "iterations": 1,
    "tasks": ("pendulum-spin", "cartpole-balance"),
}  # fmt: skip
_PUBLISHED = "mt30_1M_steps_045dist_fp16.pt"
_SHARED = Path(os.environ.get("TDMPC2_SHARED", REPO.parent / "shared"))
STUDENTS = (REPO / _PUBLISHED, REPO / "models" / _PUBLISHED, _SHARED / "checkpoints" / _PUBLISHED,
            REPO / "models" / "student.pt")  # fmt: skip


def make_config(args: argparse.Namespace, **keys: Any) -> Config:
    """Return the configuration of an MT30 student on the device asked for, a very small one under --quick."""
    return Config(**{"device": args.device, **keys, **(SMALL if args.quick else {})})


def random_batch(cfg: Config, device: torch.device) -> Batch:
    """Draw slices of steps of all tasks in turn."""
    generator, shape = torch.Generator().manual_seed(0), (cfg.horizon, cfg.batch_size)
    return Batch(
        torch.randn(cfg.horizon + 1, cfg.batch_size, cfg.obs_dim, generator=generator),
        torch.rand(*shape, cfg.action_dim, generator=generator) * 2 - 1,
        torch.rand(*shape, 1, generator=generator),
        torch.arange(cfg.batch_size) % len(cfg.task_specs),
    ).to(device)


def random_episodes(cfg: Config, episodes: int, seed: int = 0) -> dict[str, Tensor]:
    """Draw episodes of all tasks in turn, in main memory: obs [N, L+1, O], action, reward [N, L+1], task [N]."""
    layout, generator = Layout.of(cfg.task_specs), torch.Generator().manual_seed(seed)
    shape = (episodes, layout.rows)
    obs = torch.randn(*shape, layout.obs_dim, generator=generator)
    action = torch.rand(*shape, layout.action_dim, generator=generator) * 2 - 1
    reward = torch.rand(shape, generator=generator)
    action[:, 0] = reward[:, 0] = torch.nan  # no step led to the first observation
    return {"obs": obs, "action": action, "reward": reward, "task": torch.arange(episodes) % layout.num_tasks}


@contextlib.contextmanager
def student(args: argparse.Namespace) -> Iterator[Path]:
    """Yield the checkpoint to measure: ``args.checkpoint``, else a trained one that is here, else a random one.

    Raises:
        SystemExit: the checkpoint that was named does not exist.
    """
    given: Path | None = args.checkpoint
    if given is not None and (shipped := find(given)):
        given = shipped
    if given is not None and not given.exists():
        raise SystemExit(f"There is no {given}; without a checkpoint, one that is here is measured, or random weights")
    here = [given] if given else [path for path in STUDENTS if path.exists() and not args.quick]
    if here:
        print(f"Measuring {here[0]}", flush=True)
        yield here[0]
        return
    print("Measuring random weights: times are those of any model of this size, regrets and errors mean nothing")
    agent, generator = TDMPC2(make_config(args, device="cpu")), torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        for weight in agent.model.parameters():
            if weight.ndim > 1 and not weight.any():  # last layers begin at zero, so all values would be equal
                weight.normal_(0, 0.1, generator=generator)
        agent.save(Path(directory) / "random.pt")
        yield Path(directory) / "random.pt"
