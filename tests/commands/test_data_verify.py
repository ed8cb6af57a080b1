"""``tdmpc2 data verify`` lists all damage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.data.chunks import write_chunk
from tdmpc2.data.store.importer import import_episodes
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.teacher_columns import open_targets
from tdmpc2.data.tools import verify
from tests.helpers.data import SPECS, L
from tests.helpers.data_command import episodes, flip, problems_of, write_chunks, write_store


@pytest.mark.parametrize("piece", [1, 256])
def test_verify_of_good_data_finds_nothing(
    tmp_path: Path, run_data: Any, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(verify, "_EPISODES", piece)
    chunks = write_chunks(tmp_path / "chunks", episodes())
    assert run_data("verify", chunks)[:2] == (0, "2 files, 9 episodes: good\n")
    assert run_data("verify", write_store(tmp_path / "own", episodes()))[:2] == (0, "3 files, 9 episodes: good\n")
    for dtype in ("float32", "float16"):
        import_episodes([chunks], tmp_path / dtype, "three", SPECS, dtype=dtype, block=2, quiet=True)
        assert run_data("verify", tmp_path / dtype)[:2] == (0, "3 files, 9 episodes: good\n")


def test_verify_of_store_lists_every_damaged_block(tmp_path: Path, run_data: Any) -> None:
    root = write_store(tmp_path / "d", episodes())
    meta = StoreMeta.read(root / "meta.json")
    start = meta.files["rows.npy"].bytes - 9 * meta.episode_bytes
    flip(root / "rows.npy", start + 3 * meta.episode_bytes + 5)
    flip(root / "rows.npy", start + 8 * meta.episode_bytes)
    flip(root / "task.npy", -1)
    first, second, third = problems_of(run_data, root)
    found = hashlib.sha256((root / "rows.npy").read_bytes()[start:][2 * meta.episode_bytes :][: 2 * meta.episode_bytes])
    recorded = meta.files["rows.npy"].sha256[1]
    expected = f"checksum {found.hexdigest()[:16]} instead of {recorded[:16]}"
    assert first == f"{root / 'rows.npy'}, episodes 2-3: {expected}"
    assert second.startswith(f"{root / 'rows.npy'}, episodes 8-8: checksum ")
    assert third.startswith(f"{root / 'task.npy'}, episodes 8-8: checksum ")


def test_verify_of_truncated_store_lists_damage_before_its_end(tmp_path: Path, run_data: Any) -> None:
    root = write_store(tmp_path / "d", episodes())
    episode = StoreMeta.read(root / "meta.json").episode_bytes
    content = (root / "rows.npy").read_bytes()
    (root / "rows.npy").write_bytes(content[: -episode - 1])
    flip(root / "rows.npy", len(content) - 7 * episode)
    size, damaged, cut, missing = (
        problem.removeprefix(str(root / "rows.npy")) for problem in problems_of(run_data, root)
    )
    assert size == f" has {len(content) - episode - 1:,} bytes instead of {len(content):,}"
    assert damaged.startswith(", episodes 2-3: checksum ")
    assert cut == ", episodes 6-7: the file ends before their end"
    assert missing == ", episodes 8-8: the file ends before their end"


@pytest.mark.parametrize("damage", ["header", "json", "checksums", "gone"])
def test_verify_of_store_finds_other_damage(tmp_path: Path, run_data: Any, damage: str) -> None:
    root = write_store(tmp_path / "d", episodes())
    if damage == "header":
        flip(root / "rows.npy", 20)
        message = "rows.npy has a header that does not fit meta.json"
    elif damage == "json":
        (root / "meta.json").write_text("{")
        message = "meta.json is damaged"
    elif damage == "checksums":
        plain = json.loads((root / "meta.json").read_text())
        plain["files"]["rows.npy"]["sha256"].pop()
        (root / "meta.json").write_text(json.dumps(plain))
        message = "meta.json is damaged"
    else:
        (root / "rows.npy").unlink()
        message = "rows.npy cannot be read"
    (problem,) = problems_of(run_data, root)
    assert message in problem


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_verify_of_store_finds_bad_values_with_good_checksums(tmp_path: Path, run_data: Any, dtype: str) -> None:
    data = episodes()
    data["reward"][5, 2] = torch.nan
    data["obs"][8, 0, 0] = torch.inf
    first, second = problems_of(run_data, write_store(tmp_path / "d", data, dtype))
    assert "rows.npy: reward is nan in episode 5, row 2." in first
    assert first.endswith("(episodes 4-5 are as they were written)")
    assert "rows.npy: obs is inf in episode 8, row 0." in second


def test_verify_lists_every_damaged_chunk_file(tmp_path: Path, run_data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_EPISODES", 1)
    data = episodes()
    data["obs"][3, 2, 1] = torch.nan
    data["reward"][4, 6] = torch.inf
    data["task"][6, 3] = 2
    root = write_chunks(tmp_path / "d", data, (1, 1, 3, 2, 2))
    stored = (root / "chunk_0.pt").read_bytes()
    flip(root / "chunk_0.pt", stored.index(data["obs"][0].numpy().tobytes()) + 9)
    (root / "chunk_1.pt").write_bytes((root / "chunk_1.pt").read_bytes()[:-300])
    flipped, truncated, wrong, changes = problems_of(run_data, root)
    assert "chunk_0.pt, record " in flipped
    assert "Bad CRC-32" in flipped
    assert "chunk_1.pt (" in truncated
    assert "chunk_2.pt: obs is nan in episode 1, row 2." in wrong
    assert wrong.endswith("Episodes of the file with values that are not finite: 2")
    assert "chunk_3.pt: the task id changes in episode 1, row 3." in changes
    assert run_data("verify", root)[1].splitlines()[-1].startswith("5 files, 8 episodes")


def test_verify_checks_store_and_teacher_outputs_too(tmp_path: Path, run_data: Any) -> None:
    root = write_chunks(tmp_path / "d", episodes())
    store = import_episodes([root], root / "store", "three", SPECS, quiet=True)
    place, number = torch.tensor([4 * (L + 1) + 3]), torch.ones(1)
    open_targets(store, "ab" * 32, "teacher.pt").put(place, number)
    assert run_data("verify", root)[:2] == (0, "7 files, 9 episodes: good\n")
    open_targets(store, "ab" * 32, "teacher.pt").values[4, 3] = torch.inf
    (problem,) = problems_of(run_data, root)
    assert "reward.npy holds inf in episode 4, row 3" in problem
    flip(root / "store" / "rows.npy", -1)
    (problem,) = problems_of(run_data, root)
    assert "rows.npy, episodes 0-8: checksum" in problem
    flip(root / "store" / "rows.npy", -1)
    open_targets(store, "ab" * 32, "teacher.pt").values[4, 3] = 1.0
    write_chunk(root / "chunk_2.pt", **episodes([0, 1], seed=5))
    (problem,) = problems_of(run_data, root)
    assert "store was not made of the chunk files that are beside it now" in problem
    assert run_data("verify", root)[1].endswith("8 files, 11 episodes: 1 problem\n")
