"""Importing chunk files and stores into a store: what is kept, what is printed, how much memory it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdmpc2.config import Config
from tdmpc2.data.chunk_form import Layout
from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.store import selection
from tdmpc2.data.store.export import export_chunks
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.parts import Part
from tdmpc2.data.store.selection import chunk_fingerprints
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.tasks import TaskSpec
from tests.helpers.data import SPECS, L, fields, save_raw
from tests.helpers.reference import REPO
from tests.helpers.stores import TASKS, content, make_chunks, obvious_rows

# -- what is in the store ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data(), block=st.integers(1, 9), dtype=st.sampled_from(["float32", "float16"]))
def test_import_of_any_split_gives_the_obvious_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, block: int, dtype: str
) -> None:
    root = tmp_path_factory.mktemp("any")
    files = data.draw(st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=6), min_size=1, max_size=3))
    tasks = [task for tasks in files for task in tasks]
    kept_tasks = data.draw(st.none() | st.lists(st.sampled_from(tasks), min_size=1, unique=True))
    limit = data.draw(st.none() | st.integers(1, 3))
    make_chunks(root / "chunks", files)
    store = import_episodes(
        [root / "chunks"], root / "out", "three", SPECS, dtype=dtype, task_ids=kept_tasks, max_per_task=limit,
        block=block, quiet=True,
    )  # fmt: skip
    kept = []
    for task in set(tasks if kept_tasks is None else kept_tasks):
        own = [episode for episode, own_task in enumerate(tasks) if own_task == task]
        count = len(own) if limit is None else min(limit, len(own))
        kept += [own[i * len(own) // count] for i in range(count)]
    kept.sort()
    whole = {name: values[kept] for name, values in fields(tasks).items()}
    assert (root / "out/rows.npy").read_bytes().endswith(expected := obvious_rows(whole, dtype))
    assert store.rows.nbytes == len(expected)
    assert store.task.tolist() == [tasks[episode] for episode in kept]
    everything = len(kept) == len(tasks)
    assert store.meta.source == (chunk_fingerprints(root / "chunks") if everything else {})
    assert store.meta.block == block
    assert sorted(content(root / "out")) == ["meta.json", "rows.npy", "task.npy"]
    assert sorted(os.listdir(root)) == [".out.lock", "chunks", "out"]


def test_import_ignores_values_of_filler_rows(tmp_path: Path) -> None:
    data = fields(TASKS)
    for name, garbage in (("a", 1e30), ("b", -torch.inf)):
        data["action"][:, 0] = data["reward"][:, 0] = garbage
        (tmp_path / name).mkdir()
        save_raw(tmp_path / name / "chunk_0.pt", data)
        import_episodes([tmp_path / name], tmp_path / f"{name}.store", "three", SPECS, block=3, quiet=True)
    a, b = (content(tmp_path / f"{name}.store") for name in ("a", "b"))
    assert [a[name] for name in ("rows.npy", "task.npy")] == [b[name] for name in ("rows.npy", "task.npy")]
    assert EpisodeStore.open(tmp_path / "a.store").checksum == EpisodeStore.open(tmp_path / "b.store").checksum


def test_import_of_several_sources_keeps_their_order(tmp_path: Path) -> None:
    make_chunks(tmp_path / "a", [TASKS[:2]])
    make_chunks(tmp_path / "b", [TASKS[2:4], TASKS[4:]], first=2)
    make_chunks(tmp_path / "whole", [TASKS])
    a = import_episodes([tmp_path / "a"], tmp_path / "a_store", "three", SPECS)
    whole = import_episodes([tmp_path / "whole"], tmp_path / "whole_store", "three", SPECS, block=3)
    for number, sources in enumerate(([tmp_path / "a", tmp_path / "b"], [a.path, tmp_path / "b"])):
        merged = import_episodes(sources, tmp_path / f"merged_{number}", "three", SPECS, block=3)
        assert merged.checksum == whole.checksum
        assert merged.meta.source == {}
    with pytest.raises(ValueError, match="each only once"):
        import_episodes([tmp_path / "a", tmp_path / "b/../a"], tmp_path / "twice", "three", SPECS)


def test_import_to_float16_rounds_to_nearest(tmp_path: Path) -> None:
    data = fields(TASKS)
    generator = torch.Generator().manual_seed(1)
    for name in ("obs", "action"):
        data[name] *= torch.rand(data[name].shape, generator=generator) * 20
        data[name] += torch.rand(data[name].shape, generator=generator)
    data["reward"] += torch.rand(data["reward"].shape, generator=generator)
    write_chunk(tmp_path / "chunk_0.pt", **data)
    store = import_episodes([tmp_path], tmp_path / "half", "three", SPECS, dtype="float16", block=2)
    obs, action, reward = store.meta.row_format.split(store.rows)
    for stored, name in ((obs, "obs"), (action, "action")):
        assert stored.dtype == torch.float16
        given = data[name][:, 1:].double()
        error = (stored[:, 1:].double() - given).abs()
        assert bool((error <= 2**-11 * given.abs() + 2**-25).all())  # at most half of the last bit
        assert error.max() > 0
    assert torch.equal(reward[:, 1:], data["reward"][:, 1:])
    # Rounded values lose nothing more when they are converted to another form.
    export_chunks(store, tmp_path / "back")
    again = import_episodes([tmp_path / "back"], tmp_path / "again", "three", SPECS, dtype="float16", block=2)
    assert again.checksum == store.checksum
    single = import_episodes([store.path], tmp_path / "single", "three", SPECS)
    assert import_episodes([single.path], tmp_path / "half2", "three", SPECS, dtype="float16", block=2).checksum == (
        store.checksum
    )


@pytest.mark.parametrize(("name", "value"), [("obs", 65505.0), ("obs", -7e4), ("action", 1e6)])
def test_import_to_float16_of_large_values_is_refused(tmp_path: Path, name: str, value: float) -> None:
    data = fields(TASKS)
    data["obs"][0, 0, 0], data[name][5, 2, 1] = 65504, value
    write_chunk(tmp_path / "chunk_0.pt", **data)
    message = rf"chunk_0\.pt: {name} is {value:g} in episode 5, row 2; float16 holds at most 65,504\. Import it as"
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        import_episodes([tmp_path], tmp_path / "half", "three", SPECS, dtype="float16", block=2)
    assert sorted(os.listdir(tmp_path)) == [".half.lock", ".half.partial", "chunk_0.pt"]
    assert len(import_episodes([tmp_path], tmp_path / "single", "three", SPECS).rows) == len(TASKS)


def test_import_of_mt80_layout_gives_the_obvious_bytes(tmp_path: Path) -> None:
    specs = Config(task="mt80").task_specs
    layout = Layout.of(specs)
    assert layout == (101, 39, 6, 80, 500)
    data = fields([79, 3, 3, 50], length=100, obs_dim=39, action_dim=6)
    write_chunk(tmp_path / "chunk_0.pt", **data)
    for dtype in ("float32", "float16"):
        store = import_episodes([tmp_path], tmp_path / dtype, "mt80", specs, dtype=dtype)
        assert store.rows.shape == (4, 101, 46 if dtype == "float32" else 24)
        assert (store.path / "rows.npy").read_bytes().endswith(obvious_rows(data, dtype))
        assert store.task.tolist() == [79, 3, 3, 50]


def test_import_reads_rows_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces may be smaller than a block, and the chosen episodes need not follow one another."""
    make_chunks(tmp_path / "chunks", [TASKS * 3, TASKS * 2])
    monkeypatch.setattr("tdmpc2.data.store.importer._PIECE", 2 * (L + 1) * RowFormat(4, 2).record.itemsize)
    tasks = TASKS * 5
    for source in (tmp_path / "chunks", tmp_path / "all"):
        out = tmp_path / f"{source.name}_out"
        store = import_episodes([source], out, "three", SPECS, task_ids=[0, 2], block=5)
        kept = [episode for episode, task in enumerate(tasks) if task != 1]
        assert store.meta.row_format.split(store.rows)[0][:, 0, 0].tolist() == kept
        if source.name == "chunks":
            import_episodes([source], tmp_path / "all", "three", SPECS, block=5)
    for name in ("rows.npy", "task.npy"):
        assert (tmp_path / "chunks_out" / name).read_bytes() == (tmp_path / "all_out" / name).read_bytes()


def test_import_of_many_files_finds_pieces_quickly() -> None:
    number = 6900
    task = torch.zeros(100, dtype=torch.int64)
    parts = [Part(Path("chunk_0.pt"), EpisodeIndex.equal(task, L), content=None) for _ in range(number)]
    kept = torch.arange(0, 100 * number, 2)
    meta = StoreMeta("three", SPECS, len(kept))
    begin = time.perf_counter()
    index = EpisodeIndex.equal(torch.zeros_like(kept), L)
    found = list(selection.Selection(meta, parts, kept, index, [], "").pieces(0, 256))
    assert time.perf_counter() - begin < 4  # 0.1 s; a comparison of each block with each file takes 12 s
    offsets = {id(part): 100 * index for index, part in enumerate(parts)}
    assert torch.equal(torch.cat([episodes + offsets[id(part)] for part, episodes in found]), kept)


def test_import_prints_episodes_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_chunks(tmp_path / "chunks")
    import_episodes([tmp_path / "chunks"], tmp_path / "quiet", "three", SPECS, quiet=True)
    assert capsys.readouterr().out == ""
    import_episodes([tmp_path / "chunks"], tmp_path / "loud", "three", SPECS)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"Importing 7 episodes of 3 tasks from {tmp_path}/chunks to {tmp_path}/loud: 0.00 GB to write"
    )
    assert "GB free, about 0:00:00 at 300 MB/s" in first
    assert last.startswith("Importing: done, 7 episodes in 0:00:0")


# -- memory -----------------------------------------------------------------------------------------------------------


PEAK = """
import sys
from pathlib import Path
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.tasks import TaskSpec
def resident(*names):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in names) * 1024
specs = (TaskSpec("long", 16, 2, 500), TaskSpec("other", 16, 2, 500))
import_episodes([sys.argv[2]], sys.argv[3] + ".first", "two", specs, quiet=True)  # what is loaded on first use
before = resident("RssAnon", "RssFile", "RssShmem")
Path("/proc/self/clear_refs").write_text("5")  # the kernel's own record of the most begins anew
choice = {"block": int(sys.argv[4]), "task_ids": eval(sys.argv[5])}
import_episodes([sys.argv[1]], sys.argv[3], "two", specs, **choice, quiet=True)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux memory accounting")
@pytest.mark.parametrize("form", ["chunks", "every other episode", "store"])
def test_import_memory_is_less_than_two_slices(tmp_path: Path, form: str) -> None:
    specs, block = (TaskSpec("long", 16, 2, 500), TaskSpec("other", 16, 2, 500)), 1024
    make = {"length": 500, "obs_dim": 16, "action_dim": 2}
    write_chunk(tmp_path / "small/chunk_0.pt", **fields([0, 1], **make))
    for number in range(3):
        write_chunk(tmp_path / f"chunks/chunk_{number}.pt", **fields([0, 1] * 1024, **make))
    source = tmp_path / "chunks"
    if form == "store":
        source = import_episodes([source], tmp_path / "store", "two", specs).path
        shutil.rmtree(tmp_path / "chunks")
    arguments = [tmp_path / "small", tmp_path / "out", block, "[0]" if form == "every other episode" else "None"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, source, *map(str, arguments)], capture_output=True, text=True, check=True, cwd=REPO
    )
    one_slice = block * 501 * RowFormat(16, 2).record.itemsize
    assert one_slice > 38e6
    assert 0 < int(done.stdout) < 2 * one_slice  # of a store of 6 slices, from 6 slices
    written = json.loads((tmp_path / "out/meta.json").read_text())["files"]["rows.npy"]["bytes"]
    assert written > (2.9 if form == "every other episode" else 5.9) * one_slice
    shutil.rmtree(tmp_path)
