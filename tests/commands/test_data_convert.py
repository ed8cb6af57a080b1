"""``tdmpc2 data convert`` merges, thins out and compacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tdmpc2.data.chunks import read_chunk
from tdmpc2.data.store.store import EpisodeStore
from tests.helpers.data import SPECS
from tests.helpers.data_command import TASKS, episodes, write_chunks, write_store


def test_data_convert_merges_thins_out_and_compacts(tmp_path: Path, run_data: Any) -> None:
    one = write_chunks(tmp_path / "one", episodes(seed=1))
    two = write_store(tmp_path / "two", episodes([1, 2, 0], seed=2))
    code, out, _ = run_data("convert", one, two, tmp_path / "all")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'all'}: episode store, float32, 12 episodes, ")
    merged = EpisodeStore.open(tmp_path / "all")
    assert merged.task.tolist() == [*TASKS, 1, 2, 0]
    reward = merged.meta.row_format.split(merged.rows)[2]
    assert torch.equal(reward[:9, 1:], episodes(seed=1)["reward"][:, 1:])
    assert torch.equal(reward[9:, 1:], episodes([1, 2, 0], seed=2)["reward"][:, 1:])
    options = ("--tasks", f"{SPECS[1].name}, {SPECS[0].name}", "--max-episodes-per-task", 2, "--dtype", "float16")
    assert run_data("convert", tmp_path / "all", tmp_path / "few", *options)[0] == 0
    few = EpisodeStore.open(tmp_path / "few")
    assert few.task.tolist() == [0, 1, 0, 1]
    assert few.meta.dtype == "float16"
    assert few.meta.tasks == SPECS
    assert run_data("convert", tmp_path / "all", tmp_path / "ends", "tasks=*-two")[0] == 0
    assert set(EpisodeStore.open(tmp_path / "ends").task.tolist()) == {0, 2}
    assert run_data("convert", tmp_path / "few", tmp_path / "copy")[0] == 0
    assert EpisodeStore.open(tmp_path / "copy").checksum == few.checksum  # precision stays unless asked
    assert run_data("verify", tmp_path / "copy")[0] == 0


def test_data_convert_of_store_to_chunks_is_exact(tmp_path: Path, run_data: Any) -> None:
    data = episodes()
    store = write_store(tmp_path / "store", data)
    code, out, _ = run_data("convert", store, tmp_path / "chunks", "--to", "chunks", "--episodes-per-file", 4)
    assert code == 0
    assert out.splitlines()[-1] == f"{tmp_path / 'chunks'}: 3 chunk files"
    chunks = [read_chunk(tmp_path / "chunks" / f"chunk_{number}.pt") for number in range(3)]
    assert [len(chunk["task"]) for chunk in chunks] == [4, 4, 1]
    for name, values in data.items():
        assert torch.equal(torch.cat([chunk[name] for chunk in chunks]).nan_to_num(9), values.nan_to_num(9))


def test_data_convert_of_unusable_input_is_refused(tmp_path: Path, run_data: Any) -> None:
    chunks = write_chunks(tmp_path / "chunks", episodes())
    store = write_store(tmp_path / "store", episodes())
    other = write_chunks(tmp_path / "other", episodes())
    record = json.loads((other / "collect.json").read_text())
    record["tasks"][0]["name"], record["task"] = "renamed", "else"
    (other / "collect.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    for arguments, message in (
        ((chunks, store, "--tasks", "five-*"), "the pattern 'five-*' matches none of the tasks of three"),
        ((chunks, store, "--tasks", "tree-two"), "'tree-two' is not a task of three. Did you mean 'three-two'?"),
        ((chunks, other), f"{chunks} is of task=three, {other} of else: merge data of one task set"),
        ((store, "--task", "mt30"), "is an episode store of task=three, not of mt30"),
        ((chunks, "--to", "chunks"), "to=chunks writes one whole episode store"),
        ((store, "--to", "chunks", "--tasks", "three-two"), "to=chunks writes one whole episode store"),
        ((store, "--episodes-per-file", "3"), "episodes_per_file is for to=chunks"),
        ((tmp_path / "nowhere",), "nowhere is not a directory: expected an episode store"),
    ):
        code, _, error = run_data("convert", *arguments[:1], *(a for a in arguments[1:] if isinstance(a, Path)), out,
                             *(a for a in arguments[1:] if not isinstance(a, Path)))  # fmt: skip
        assert code == 2
        assert error.startswith("error: ")
        assert message in error
        assert not out.exists()
    before = (store / "rows.npy").read_bytes()
    code, _, error = run_data("convert", chunks, store)
    assert code == 2
    assert "exists" in error
    assert (store / "rows.npy").read_bytes() == before
    assert run_data("convert", chunks, out, "--max-episodes-per-task", "0")[0] == 2
