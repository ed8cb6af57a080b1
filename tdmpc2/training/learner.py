"""The updates of a run that learns online: what is owed, what is drawn, and what a signal leaves to be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.run_state import NEW_RUN, part_of
from tdmpc2.config import Config
from tdmpc2.data.batch import Batch
from tdmpc2.data.reward_range import beyond_bins
from tdmpc2.data.ring import ReplayRing
from tdmpc2.nn.pixels import PixelEncoder, split_observation
from tdmpc2.play.rollout import Episode
from tdmpc2.support.entries import Entry, check_entries, flag, whole
from tdmpc2.tracking.progress import Progress
from tdmpc2.training.demonstrations import Batches
from tdmpc2.training.loop import Run
from tdmpc2.training.teacher import fit_pca

#: Metrics are for the log alone, and the count of short episodes for a message: a run saved without them goes on.
_METRICS = Entry(
    lambda v: (
        isinstance(v, Mapping)
        and all(
            isinstance(name, str) and isinstance(x, Tensor) and x.ndim == 0 and x.isfinite() for name, x in v.items()
        )
    ),
    "finite numbers by name, as tensors",
)
_LEARNER = {
    "done": whole(), "owed": whole(-(10**9)), "interrupted": flag(), "metrics": _METRICS.optional,
    "short": whole().optional,
}  # fmt: skip
_MOST_SHORT = 100  # played episodes in a row that may be too short to learn from
_BURST = 100  # updates in a row that are worth a progress bar


class Learner:
    """The updates of a run: how many were made, and how many are owed.

    Args:
        run: whose agent learns.
        replay: what it learns from.
        batches: drawn from it, and from demonstrations if there are any.

    Attributes:
        done: updates made.
        owed: updates that are still due: a signal cut the last step short, or no episode has been stored yet. Negative:
            updates already made for a step in which an environment failed, which will be taken again without them.
        interrupted: the last step was cut short; its updates are to be made before the next one.
        metrics: of the last update; where there are fewer updates than steps, most steps have none of their own.
        short: played episodes in a row that were too short to be drawn from.
    """

    def __init__(self, run: Run, replay: ReplayRing, batches: Batches) -> None:
        self._run, self._replay, self._batches = run, replay, batches
        self.done = self.owed = self.short = 0
        self.interrupted = False
        self.metrics: Mapping[str, Tensor] = {}
        self._said_short = False
        self._beyond_bins: set[str] = set()  # tasks of which it was said
        self._last_seed: int | None = None

    def store(self, step: int, episodes: Sequence[Episode]) -> None:
        """Add episodes to the buffer; the first one that is too short to be drawn from is named."""
        for episode in episodes:
            job, name = episode.job, self._run.cfg.task_specs[episode.job.task_id].name
            if name not in self._beyond_bins and (line := beyond_bins(self._run.cfg, episode.reward, name)):
                self._beyond_bins.add(name)
                self._run.message(line)
            self._replay.add(episode.obs, episode.action, episode.reward, job.task_id, episode.terminated)
            if job.seed != self._last_seed:  # the same one, scored for another task of its body, follows it
                self.short = self.short + 1 if len(episode.reward) - 1 < self._replay.horizon else 0
                self._last_seed = job.seed
            if len(episode.reward) - 1 < self._replay.horizon and not self._said_short:
                self._said_short = True
                self._run.message(
                    f"An episode of {name} (seed {job.seed}, until step {step:,}) had "
                    f"{len(episode.reward) - 1} steps, less than horizon={self._replay.horizon}: such episodes are "
                    "stored and counted, but no slice of them can be drawn"
                )

    def update(self) -> Mapping[str, Tensor] | None:
        """Make the updates that are owed; a signal ends them early.

        Returns:
            The metrics of the last update so far; None before the first one, and where a signal ended them early.

        Raises:
            ValueError: there is none to learn from, and the last :data:`_MOST_SHORT` that were played were too short.
        """
        replay = self._replay
        self.interrupted = False
        if self.owed <= 0 or not self.ready():
            return self.metrics or None
        if pca_line := fit_pca(self._run.agent, replay.sampler):
            self._run.message(pca_line)
        if not self.done and fits_encoder(self._run.cfg):
            fit_encoder(self._run.agent, self.draw())
        many = self.owed >= _BURST
        with Progress(self.owed, "Learning from the seed steps", unit="updates") if many else nullcontext() as bar:
            while self.owed > 0 and not self.interrupted:
                self.count(self._run.update(self.draw()))
                self.interrupted = self.owed > 0 and self._run.told_to_stop(self.done)
                if bar:
                    bar.update()
        return None if self.interrupted else self.metrics

    def draw(self) -> Batch:
        """Draw the batch of the next update."""
        return self._batches.draw(self.done)

    def count(self, metrics: Mapping[str, Tensor]) -> None:
        """Count an update that was made."""
        self.metrics = metrics
        self.done += 1
        self.owed -= 1

    def ready(self) -> bool:
        """Tell whether there is something to learn from.

        Raises:
            ValueError: see :meth:`update`.
        """
        replay = self._replay
        if self.short >= _MOST_SHORT and not len(replay.sampler):
            raise ValueError(
                f"None of the last {self.short:,} episodes has the {replay.horizon} steps that a slice takes, nor any "
                "other in the buffer: set horizon lower, or have the environment's episodes last longer"
            )
        return len(replay.sampler) > 0

    def state(self) -> Mapping[str, Any]:
        """Say where the updates stand."""
        metrics = {name: value.cpu() for name, value in self.metrics.items()}
        return {
            "done": self.done, "owed": self.owed, "interrupted": self.interrupted, "metrics": metrics,
            "short": self.short,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            ValueError: an entry is missing or no such number.
        """
        state = check_entries(part_of(self._run.cfg.run_dir, "learner"), state, _LEARNER, NEW_RUN)
        self.done, self.owed, self.interrupted = state["done"], state["owed"], state["interrupted"]
        self.metrics, self.short = state.get("metrics", {}), state.get("short", 0)


def cut_short(parts: Mapping[str, Any]) -> bool:
    """Tell from what was saved of a run's parts whether a signal left updates of its last step to be made."""
    learner = parts.get("learner")
    return isinstance(learner, Mapping) and learner.get("interrupted") is True


def fits_encoder(cfg: Config) -> bool:
    """Tell whether the encoder of images is to be scaled before the first update: one that begins at random."""
    begins = cfg.checkpoint is None or "encoder" in cfg.reset
    return cfg.fit_encoder and cfg.observes_images and begins and "encoder" not in cfg.freeze


def fit_encoder(agent: TDMPC2, batch: Batch) -> None:
    """Scale the layers of the encoder of images to those of a batch, of all processes together."""
    cfg, obs = agent.cfg, batch.obs.flatten(0, 1)
    images = split_observation(obs, cfg.obs_dim, cfg.image_shape)[1] if cfg.observes_state else obs
    encoder = agent.model._encoder["rgb"]
    assert isinstance(encoder, PixelEncoder)
    encoder.fit(images, agent.group.average)
