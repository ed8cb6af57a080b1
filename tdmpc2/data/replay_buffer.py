"""Stored episodes as a torchrl replay buffer, for torchrl's samplers and transforms.

Training itself calls the sampler directly, since going through the buffer takes 2.5 times as long a batch
(``benchmarks/data.py``); both give the same batches.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler

from tdmpc2.data.batch import Batch
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.ring import ReplayRing
from tdmpc2.data.sampler import SliceSampler


def replay_buffer(
    dataset: EpisodeDataset | ReplayRing, sampler: Sampler, batch_size: int, horizon: int
) -> TensorDictReplayBuffer:
    """Make a torchrl buffer over all rows of a data set, end to end, or of a ring; rows are not copied.

    With a sampler of torchrl, such as ``SliceSampler(traj_key="episode", slice_len=horizon + 1, cache_values=True)``,
    task and episode become columns of 4 bytes a row each in memory (2.8 GB for MT30).

    Args:
        dataset: in memory or mapped from a store; or a ring, which fills under the buffer.
        sampler: a :class:`~tdmpc2.data.sampler.SliceSampler` of this data set and horizon (a ring's own one), or one of
            torchrl's.
        batch_size: B, in slices.
        horizon: H.

    Returns:
        A buffer whose ``sample()`` is a TensorDict of B (H + 1) rows with obs, action, reward, task and episode; see
        :func:`to_batch`.

    Raises:
        ValueError: our sampler is of another horizon, or a ring is given a sampler of torchrl's.
    """
    columns = dataset.columns()
    if isinstance(sampler, SliceSampler):
        if sampler.horizon != horizon:
            raise ValueError(f"horizon={horizon}, but the sampler draws slices of horizon={sampler.horizon}")
    elif isinstance(dataset, EpisodeDataset):
        counts = dataset.lengths + 1
        columns["task"] = dataset.task.int().repeat_interleave(counts.to(dataset.task.device))
        columns["episode"] = torch.arange(len(dataset), dtype=torch.int32).repeat_interleave(counts)
    else:
        raise ValueError("A ring is sampled with its own sampler: others would draw rows that are overwritten")
    storage = TensorStorage(TensorDict(columns, batch_size=[len(columns["reward"])]))
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=batch_size * (horizon + 1))


def to_batch(sample: TensorDict, horizon: int) -> Batch:
    """Turn B (H + 1) rows, slice by slice, into a batch for ``agent.update``."""
    slices = sample.reshape(-1, horizon + 1)
    obs, action, reward = (slices[name].float().transpose(0, 1) for name in ("obs", "action", "reward"))
    terminated = slices.get("terminated", None)
    return Batch(
        obs.contiguous(),
        action[1:].contiguous(),
        reward[1:].unsqueeze(-1).contiguous(),
        slices["task"][:, 0].long(),
        terminated=None if terminated is None else terminated[:, 1:].T.float().unsqueeze(-1).contiguous(),
    )
