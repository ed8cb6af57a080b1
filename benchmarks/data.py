"""Data at the size of MT30: opening, memory, drawing batches; beside torchrl's SliceSampler.

python benchmarks/data.py             # writes 1 GB and, for the comparison of layouts, 1 GB more
python benchmarks/data.py --gb 20     # 10 minutes, as in RESULTS.md; at most half the free disk is written

A store of 345,690,000 rows is made, of which the first --gb are really written and the rest is a hole in the file; all
of it is removed again. Index times are over all rows; batches are gathered from the written part only, first from cold
pages, then the same batches again from warm ones. Everything runs on one core. Results: `name` and `value`.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import SliceSampler as TorchrlSliceSampler
from torchrl.data import TensorDictReplayBuffer

from benchmarks._harness import make_parser, numbered, parse, print_table, report, take_turns
from benchmarks._inputs import make_config
from benchmarks.distillation_cache import measure as measure_distillation
from tdmpc2.data.batch import Batch
from tdmpc2.data.batches import Batches
from tdmpc2.data.dataset import EpisodeDataset
from tdmpc2.data.replay_buffer import replay_buffer, to_batch
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store.meta import BLOCK, StoreFile, StoreMeta
from tdmpc2.data.store.store import EpisodeStore, header
from tdmpc2.tasks import MT30, lookup
from tdmpc2.tracking.progress import Progress

MINUTES = 1
FULL_MINUTES = 3
DISK_GB = 2

B, H, SEED = 256, 3, 1


def make_store(root: Path, episodes: int, written_bytes: int) -> int:
    """Make the store; returns the number of episodes whose bytes are really on disk."""
    specs = tuple(lookup(name) for name in MT30)
    meta = StoreMeta("mt30", specs, episodes)
    start = header((episodes, meta.layout.rows), meta.row_format.record)
    noise = np.random.default_rng(0).standard_normal(BLOCK * meta.episode_bytes // 4, np.float32)
    written = min(episodes, written_bytes // meta.episode_bytes)
    with open(root / "rows.npy", "wb") as file, Progress(written, "Writing", unit="episodes") as bar:
        file.write(start)
        for first in range(0, written, BLOCK):
            count = min(BLOCK, written - first)
            file.write(noise[: count * meta.episode_bytes // 4].data)
            file.flush()
            os.fsync(file.fileno())
            bar.update(count)
        file.truncate(len(start) + episodes * meta.episode_bytes)
    task = np.arange(episodes, dtype="<i4") % len(specs)
    np.save(root / "task.npy", task)
    blocks = range(0, episodes, BLOCK)
    checksums = {
        "rows.npy": ("0" * 64,) * len(blocks),  # opening does not read them
        "task.npy": tuple(hashlib.sha256(task[start : start + BLOCK].data).hexdigest() for start in blocks),
    }
    files = {name: StoreFile((root / name).stat().st_size, sums) for name, sums in checksums.items()}
    (root / "meta.json").write_text(StoreMeta("mt30", specs, episodes, files=files).to_json())
    return written


def drop_cache(path: Path) -> None:
    """Let the system forget the file's pages, where it takes such advice."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_mb() -> float:
    """Return the anonymous and shared memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024


def median_ms(function: Callable[[int], Any], repeats: int) -> float:
    """Return the median time of ``function(0)``, ``function(1)``, ... in ms."""
    return take_turns({"": numbered(function)}, repeats, warm_up=0).ms("")


def measure_store(root: Path, written: int, repeats: int) -> dict[str, float]:
    """Measure opening a store and drawing from it."""
    start = time.perf_counter()
    store = EpisodeStore.open(root)
    sampler = SliceSampler(EpisodeDataset.map(store))
    open_s = time.perf_counter() - start
    part = SliceSampler(EpisodeDataset.map(store), torch.arange(written))

    def index(step: int) -> object:
        return sampler.rows(step, B, H, SEED)

    def batch(step: int) -> Batch:
        return part.draw(step, B, H, SEED)

    drop_cache(root / "rows.npy")
    cold = median_ms(batch, repeats)
    batches = iter(Batches(batch, range(repeats, 3 * repeats), torch.device("cpu"), 8))
    start = time.perf_counter()
    ahead = sum(1 for _ in batches)
    threads = 1e3 * (time.perf_counter() - start) / ahead
    index_ms, batch_ms = median_ms(index, 10 * repeats), median_ms(batch, repeats)
    tasks = SliceSampler(EpisodeDataset.map(store), torch.arange(written), "tasks")
    return {
        "rows": store.rows.shape[0] * store.rows.shape[1],
        "written_gb": written * store.meta.episode_bytes / 1e9,
        "open_s": open_s,
        "anon_mb": resident_mb(),
        "index_ms": index_ms,
        "index_by_task_ms": median_ms(lambda step: tasks.rows(step, B, H, SEED), 10 * repeats),
        "batch_ms": batch_ms,
        "cold_batch_ms": cold,
        "cold_batch_8_threads_ms": threads,
    }


def measure_torchrl(root: Path, written: int, repeats: int) -> dict[str, float]:
    """Measure torchrl's sampler over the same rows, and ours through torchrl, with warm pages and equal draws."""
    store = EpisodeStore.open(root)
    dataset = EpisodeDataset.map(store)
    own = SliceSampler(dataset, torch.arange(written), horizon=H, seed=SEED)
    through = replay_buffer(dataset, own, B, H)
    result = {}

    def sampled(buffer: TensorDictReplayBuffer, _: int) -> Batch:
        return to_batch(buffer.sample(), H)

    median_ms(lambda _: through.sample(), repeats)
    own.step = 0
    result["replay_buffer_ms"] = median_ms(partial(sampled, through), repeats)
    rows = int((dataset.lengths + 1).sum())
    for name, cached, count in (("uncached", False, 5), ("cached", True, repeats)):
        gc.collect()
        sampler = TorchrlSliceSampler(traj_key="episode", slice_len=H + 1, cache_values=cached)
        buffer = replay_buffer(dataset, sampler, B, H)
        for _ in range(2):  # the second time from warm pages
            buffer.set_rng(torch.Generator().manual_seed(0))
            buffer.sample()  # fills the cache
            result[f"slice_sampler_{name}_ms"] = median_ms(partial(sampled, buffer), count)
        del buffer, sampler
    return {"slice_sampler_rows": rows, **result}


def measure_layouts(root: Path, written: int, repeats: int) -> dict[str, float]:
    """Measure the same rows as records, as three arrays and as a memory-mapped TensorDict, cold and then warm."""
    store = EpisodeStore.open(root)
    count, length = min(8_000, written), store.rows.shape[1]
    sampler = SliceSampler(EpisodeDataset.map(store), torch.arange(count))
    part = EpisodeDataset(store.meta.row_format, store.read(0, count), store.task[:count])
    columns = {name: getattr(part, name).flatten(0, 1) for name in ("obs", "action", "reward")}
    arrays = {}
    for name, column in columns.items():
        np.save(root / f"{name}.npy", column.numpy())
        array = np.load(root / f"{name}.npy", mmap_mode="r+")
        array._mmap.madvise(mmap.MADV_RANDOM)
        arrays[name] = torch.from_numpy(array)
    TensorDict(columns, batch_size=[count * length]).memmap(root / "tensordict")
    mapped = TensorDict.load_memmap(root / "tensordict")

    def three(step: int) -> object:
        rows = sampler.rows(step, B, H, SEED)
        steps = rows[1:].flatten()
        return (
            arrays["obs"].index_select(0, rows.flatten()).view(H + 1, B, -1),
            arrays["action"].index_select(0, steps).view(H, B, -1),
            arrays["reward"].index_select(0, steps).view(H, B, 1),
            store.task[rows[0] // length],
        )

    cases: dict[str, Callable[[int], object]] = {
        "records": lambda step: sampler.draw(step, B, H, SEED),
        "three_arrays": three,
        "tensordict_memmap": lambda step: mapped[sampler.rows(step, B, H, SEED)],
    }
    os.sync()
    for path in (*root.glob("*.npy"), *(root / "tensordict").iterdir()):
        drop_cache(path)
    result = {f"{name}_cold_ms": median_ms(case, repeats) for name, case in cases.items()}
    warm = take_turns({name: numbered(case) for name, case in cases.items()}, repeats, warm_up=0)
    return result | {f"{name}_ms": warm.ms(name) for name in cases}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=50, threads=1)
    parser.add_argument(
        "--gb", type=float, default=0.3, help="data that is really written (default: %(default)s, 1 with --full)"
    )
    parser.add_argument("--episodes", type=int, default=690_000, help="of the store (default: %(default)s, as MT30)")
    parser.add_argument("--dir", type=Path, default=Path("."), help="where the store is made (default: this directory)")
    args = parse(parser, argv, {"gb": 1, "repeats": 200}, gb=0.02, episodes=5000)
    gb = min(args.gb, shutil.disk_usage(args.dir).free / 2e9)
    with tempfile.TemporaryDirectory(prefix="benchmark_data_", dir=args.dir) as name:
        root = Path(name)
        written = make_store(root, args.episodes, int(gb * 1e9))
        result = measure_store(root, written, args.repeats)
        result |= measure_torchrl(root, written, args.repeats)
        result |= measure_layouts(root, written, args.repeats)
    result["ratio_uncached"] = result["slice_sampler_uncached_ms"] / result["batch_ms"]
    result["ratio_cached"] = result["slice_sampler_cached_ms"] / result["batch_ms"]
    updates = 1 if args.quick else 30
    distillation = measure_distillation(make_config(args), make_config(args, model_size=5), updates, args.limit)
    result["cached_step_over_plain_step"] = distillation.ratio("cached", "plain")
    rounded = [{"name": name, "value": round(value, 3)} for name, value in result.items()]
    print_table(rounded, [("measured", "name", ""), ("value", "value", ",")])
    report("data", args, [{"name": name, "value": value} for name, value in result.items()])


if __name__ == "__main__":
    main()
