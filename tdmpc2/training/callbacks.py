"""Callbacks: code of a user's own that is told what happens in a run and may end it.

    class GoodEnough(Callback):
        def on_evaluation(self, step, result):
            return result.normalized_score > 50

    train(cfg, None, callbacks=[GoodEnough()])

A run that a callback ends is saved and closed as at its last step, and ``train`` returns. The same call goes on from
there, until a callback asks again. What a callback raises ends the run as an error does, which goes on from its last
save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from tdmpc2.play.evaluation import Evaluation
from tdmpc2.support.text import shown


class Callback(Protocol):
    """A listener to a run. Derive from it and define the methods you need; each may return True to end the run.

    With several processes (torchrun) every process calls its own; one that asks ends all of them.
    """

    def on_update(self, step: int, metrics: Mapping[str, Tensor]) -> bool | None:
        """Listen to every update.

        Args:
            step: of the run. Learning online it is that of the environments, so that several updates may have the same.
            metrics: losses and gradient norms, 0-d tensors on the agent's device. ``float(metrics["total_loss"])``
                waits for a GPU, so do not read every one there; the next update may overwrite them.
        """
        return None

    def on_episode(self, step: int, episode: Mapping[str, str | float]) -> bool | None:
        """Listen to every episode that was played for training, with ``mode=online``.

        Args:
            step: the last one of the episode. With ``env_workers`` it is taken while the updates of its turn are made,
                so that it is heard of after them.
            episode: its task, return, length, success and whether it terminated (1.0), as in ``episodes.csv``.
        """
        return None

    def on_evaluation(self, step: int, result: Evaluation) -> bool | None:
        """Listen to every evaluation, which is made and saved before.

        Args:
            step: of the run.
            result: scores with intervals and the returns of each task; what `evaluate` returns.
        """
        return None


class Callbacks:
    """All callbacks of a run.

    Args:
        callbacks: in the order in which they are called.

    Attributes:
        stopped_by: name of the class of the first one that asked for the end of the run.

    Raises:
        ValueError: one lacks a method.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)
        self.stopped_by: str | None = None
        for callback in self._callbacks:
            for name in ("on_update", "on_episode", "on_evaluation"):
                if isinstance(callback, type) or not callable(getattr(callback, name, None)):
                    raise ValueError(
                        f"callbacks: {shown(callback)} has no method {name} to call: give instances of a class that is "
                        "derived from tdmpc2.training.callbacks.Callback"
                    )

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def updated(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Call all of them after an update."""
        for callback in self._callbacks:
            self._take(callback, callback.on_update(step, metrics))

    def played(self, step: int, episodes: Sequence[Mapping[str, str | float]]) -> None:
        """Call all of them for each episode that ended with a step."""
        for callback in self._callbacks:
            for episode in episodes:
                self._take(callback, callback.on_episode(step, episode))

    def evaluated(self, step: int, result: Evaluation) -> None:
        """Call all of them after an evaluation."""
        for callback in self._callbacks:
            self._take(callback, callback.on_evaluation(step, result))

    def _take(self, callback: Callback, answer: bool | None) -> None:
        if answer is not None and bool(answer) and self.stopped_by is None:
            self.stopped_by = type(callback).__name__
