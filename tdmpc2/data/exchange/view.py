"""An episode to look at: a figure of what was observed, done and rewarded, and its actions played again as a video.

A video needs the environment at the state in which the episode began. Collected chunk files record the seeds of their
episodes; of other data the seed has to be known. Whatever the seed, the first observation must be the stored one, and
how far later ones are from the stored ones is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tdmpc2.data.collect_record import Record, drawn_seeds
from tdmpc2.data.exchange.rows import Own, OwnData
from tdmpc2.data.source import CHUNKS
from tdmpc2.envs.registry import build_env
from tdmpc2.envs.wrappers import frame_rate
from tdmpc2.support.figures import figure_class, save_figure

_MOST_LINES = 12  # observations and actions that are drawn each
_SAME = {"float16": 1e-3, "float32": 1e-4}  # of a first observation: rounding, and units of the environment


class Played(NamedTuple):
    """Frames of an episode that was played again, and how far it was from the stored one.

    Attributes:
        frames: uint8 [height, width, 3] each.
        distance: largest difference of an observation from the stored one.
        seed: of the environment.
        fps: frames that are a second of its time.
    """

    frames: list[Any]
    distance: float
    seed: int
    fps: float


def draw_episode(episode: Own, path: Path, title: str) -> None:
    """Draw an episode into a PNG: observations, actions and rewards over its steps.

    Raises:
        ValueError: something else has that name, or see :func:`~tdmpc2.support.files.replacing`.
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure = figure_class()(figsize=(8, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1))
    steps = len(episode.reward)
    for panel, values, x, name in (
        (top, episode.obs, np.arange(steps + 1), "observation"),
        (middle, episode.action, np.arange(1, steps + 1), "action"),
    ):
        shown = _most_varied(values)
        panel.plot(x, values[:, shown], linewidth=0.9, label=[str(i) for i in shown])
        rest = f" ({len(shown)} of {values.shape[1]} that vary most)" if len(shown) < values.shape[1] else ""
        panel.set_ylabel(f"{name}{rest}", fontsize=8)
        panel.legend(fontsize=6, ncols=6, loc="upper right", framealpha=0.6)
    middle.set_ylim(-1.1, 1.1)
    bottom.plot(np.arange(1, steps + 1), episode.reward, color="tab:green", linewidth=1)
    bottom.set_ylabel("reward", fontsize=8)
    bottom.set_xlabel(f"step; the episode {'terminated' if episode.terminated else 'ended at its time limit'}")
    for panel in (top, middle, bottom):
        panel.tick_params(labelsize=7)
        panel.spines[["right", "top"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _most_varied(values: Any) -> list[int]:
    spread = np.argsort(-values.std(axis=0), kind="stable")[:_MOST_LINES]
    return sorted(spread.tolist())


def recorded_seed(data: OwnData, number: int) -> int | None:
    """Find the seed of the environment of an episode, if the data are chunk files that were collected.

    Raises:
        ValueError: the record is damaged.
    """
    root = data.source.path
    if data.source.form != CHUNKS or not (root / "collect.json").exists():
        return None
    record = Record.read(root, data.source.task, data.source.specs)
    part, place = data.place(number)
    file = int(part.path.stem.removeprefix("chunk_"))
    for collection in record.collections:
        seed = collection.settings.get("seed")
        if collection.first <= file < collection.first + collection.count and type(seed) is int and seed >= 0:
            return drawn_seeds(seed, file, len(part.index))[1][place]
    return None


def play_again(episode: Own, seed: int, dtype: str = "float32") -> Played:
    """Play the stored actions of an episode in its environment.

    Args:
        episode: whose actions are played.
        seed: of its environment.
        dtype: that the data are stored in.

    Raises:
        ValueError: it does not begin as the stored one, ends before it, or draws no frames.
    """
    env = build_env(episode.spec.name, seed, "rgb_array")  # imports no module: the data name the task, not the user
    try:
        obs, _ = env.reset(seed=seed)
        first = float(np.abs(obs - episode.obs[0]).max())
        if not first <= _SAME[dtype] * max(1.0, float(np.abs(episode.obs[0]).max())):
            raise ValueError(
                f"episode {episode.number} of {episode.spec.name} does not begin as with seed={seed} (an observation "
                f"differs by {first:.3g}): it was played from another state, and cannot be played again"
            )
        frames, distance = [_frame(env)], first
        for step, action in enumerate(episode.action, 1):
            obs, _, terminated, truncated, _ = env.step(action)
            distance = max(distance, float(np.abs(obs - episode.obs[step]).max()))
            frames.append(_frame(env))
            if (terminated or truncated) and step < len(episode.action):
                raise ValueError(
                    f"episode {episode.number}: played again it ends at step {step} of {len(episode.action)}"
                )
        return Played(frames, distance, seed, frame_rate(env))
    finally:
        env.close()


def _frame(env: Any) -> Any:
    frame = env.render()
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3):
        raise ValueError("the environment draws no frames: leave out video")
    return frame
