"""Observations that a configuration asks for: the state, images, or both side by side (``obs``)."""

from __future__ import annotations

from typing import Protocol

from tdmpc2.tasks import TaskSpec

STACKED = 3  # frames of an observation, oldest first
_DRAWN = (3, 64, 64)  # what an environment draws that observes no images of its own


class Observing(Protocol):
    """The part of a configuration that decides what is observed."""

    @property
    def task(self) -> str: ...

    @property
    def obs(self) -> str: ...

    @property
    def mode(self) -> str: ...

    @property
    def multitask(self) -> bool: ...

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]: ...


def stacked_shape(spec: TaskSpec) -> tuple[int, int, int]:
    """Find the shape of a task's newest images side by side: channels, height, width."""
    channels, height, width = spec.image or _DRAWN
    return STACKED * channels, height, width


def check_observations(cfg: Observing) -> None:
    """Raise ``ValueError`` unless the tasks have what is to be observed, and it can be learned from.

    No image is left out of an observation unsaid.
    """
    if cfg.obs == "state":
        if spec := next((one for one in cfg.task_specs if one.image), None):
            both = "rgb+state learns from them and its other numbers" if spec.obs_dim else "rgb learns from them"
            raise ValueError(
                f"obs=state: task '{spec.name}' observes images, which are no state: obs={both}; or register a version "
                "of the environment that leaves them out (gymnasium.wrappers.FilterObservation)"
            )
        return
    if cfg.multitask:
        raise ValueError(f"obs={cfg.obs} learns one task, and task={cfg.task} is a set: name a task, or use obs=state")
    if cfg.mode == "offline":
        raise ValueError(f"obs={cfg.obs} learns online: stored episodes hold states, no images. Leave out data_dir")
    if cfg.obs == "rgb+state" and not cfg.task_specs[0].obs_dim:
        raise ValueError(f"obs=rgb+state: task '{cfg.task}' observes images and no other numbers: use obs=rgb")
