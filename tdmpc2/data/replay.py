"""The same slices through torchrl, for those who want to swap in another of its samplers.

Training itself draws from :class:`~tdmpc2.data.dataset.SliceSampler` directly, which takes half the time
(``benchmarks/data.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler

from tdmpc2.data.batch import Batch
from tdmpc2.data.dataset import EpisodeDataset, SliceSampler


class EpisodeSliceSampler(Sampler):
    """A torchrl sampler whose order is a pure function of (seed, step, rank).

    Args:
        sampler: what is drawn from.
        horizon: H; a slice has H + 1 rows.
        seed: seed of the run.
        rank: number of the process.
        step: number of the first batch.
    """

    def __init__(self, sampler: SliceSampler, horizon: int, seed: int, rank: int = 0, step: int = 0) -> None:
        super().__init__()
        self._sampler, self._horizon, self._seed, self._rank, self.step = sampler, horizon, seed, rank, step

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Numbers of B (H + 1) rows, slice by slice, and the task and episode of each."""
        slices, rest = divmod(batch_size, self._horizon + 1)
        if rest:
            raise ValueError(f"batch_size={batch_size} is no multiple of the {self._horizon + 1} rows of a slice")
        dataset = self._sampler.dataset
        rows = self._sampler.rows(self.step, slices, self._horizon, self._seed, self._rank).T.flatten()
        rows = rows.to(dataset.rows.device)
        episode = rows // (dataset.episode_length + 1)
        self.step += 1
        return rows, {"task": dataset.task[episode], "episode": episode}

    def state_dict(self) -> dict[str, Any]:
        """The step: all there is."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.step = state_dict["step"]

    def dumps(self, path: str | Path) -> None:
        """Nothing to write besides :meth:`state_dict`."""

    def loads(self, path: str | Path) -> None:
        """Nothing to read besides :meth:`state_dict`."""

    def _empty(self) -> None:
        self.step = 0


def replay_buffer(dataset: EpisodeDataset, sampler: Sampler, batch_size: int, horizon: int) -> TensorDictReplayBuffer:
    """A torchrl buffer over all rows of a data set, end to end; rows are not copied.

    With a sampler of torchrl, such as ``SliceSampler(traj_key="episode", slice_len=horizon + 1, cache_values=True)``,
    task and episode become columns of 4 bytes a row each in memory (2.8 GB for MT30).

    Args:
        dataset: in memory or mapped from a store.
        sampler: :class:`EpisodeSliceSampler`, or one of torchrl's.
        batch_size: B, in slices.
        horizon: H.

    Returns:
        A buffer whose ``sample()`` is a TensorDict of B (H + 1) rows with obs, action, reward, task and episode; see
        :func:`to_batch`.
    """
    columns = {"obs": dataset.obs, "action": dataset.action, "reward": dataset.reward}
    columns = {name: column.flatten(0, 1) for name, column in columns.items()}
    length = dataset.episode_length + 1
    if not isinstance(sampler, EpisodeSliceSampler):
        columns["task"] = dataset.task.int().repeat_interleave(length)
        columns["episode"] = torch.arange(len(dataset), dtype=torch.int32).repeat_interleave(length)
    storage = TensorStorage(TensorDict(columns, batch_size=[len(dataset) * length]))
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=batch_size * (horizon + 1))


def to_batch(sample: TensorDict, horizon: int) -> Batch:
    """A batch for ``agent.update`` from B (H + 1) rows, slice by slice."""
    slices = sample.reshape(-1, horizon + 1)
    obs, action, reward = (slices[name].float().transpose(0, 1) for name in ("obs", "action", "reward"))
    return Batch(
        obs.contiguous(), action[1:].contiguous(), reward[1:].unsqueeze(-1).contiguous(), slices["task"][:, 0].long()
    )
