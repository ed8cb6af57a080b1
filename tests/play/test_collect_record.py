"""The record of a collection: what was collected, and what may be added to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import file_sha256
from tdmpc2.config import Config
from tdmpc2.play.collector import Shard, collect, episode_returns
from tests.helpers.playing import chunks, toy
from tests.helpers.toy_envs import STANDS


def test_collect_again_adds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[Shard] = []
    first = collect(toy(), None, tmp_path, lambda shard, returns: reports.append(shard))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert [(shard.number, shard.episodes) for shard in reports] == [(0, 3), (1, 3), (2, 1)]
    assert "chunk_0.pt to chunk_2.pt; 0.0 MB to collect" in capsys.readouterr().out
    assert collect(toy(), None, tmp_path, lambda shard, returns: reports.append(shard)) == first
    assert len(reports) == 3
    assert "7 episodes in 3 files, chunk_0.pt to chunk_2.pt: complete; change seed" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    del before[tmp_path / "collect.lock"], after[tmp_path / "collect.lock"]
    assert after == before
    second = collect(toy(seed=2), None, tmp_path)
    assert [path.name for path in second] == ["chunk_3.pt", "chunk_4.pt", "chunk_5.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "collect.json", "collect.lock", *(f"chunk_{i}.pt" for i in range(6)),
    }  # fmt: skip


def test_collect_record_names_mixture_and_files(model: str, tmp_path: Path) -> None:
    mix = ("0.5 random", f"0.5 planner {model} noise 0.2")
    collect(toy(mix=mix), None, tmp_path / "data")
    record = json.loads((tmp_path / "data" / "collect.json").read_text())
    assert (record["format"], record["task"]) == (1, STANDS)
    assert record["tasks"] == [dict(spec) for spec in toy().to_dict()["task_specs"]]
    (entry,) = record["collections"]
    random, planner = entry["settings"].pop("sources")
    assert entry["settings"] == {"tasks": [STANDS], "seed": 1, "episodes_per_task": 7, "episodes_per_file": 3}
    assert random == {"share": 0.5, "kind": "random"}
    assert (planner["sha256"], planner["noise"]) == (file_sha256(model), 0.2)
    assert planner["planner"]["num_samples"] == 16
    assert entry["computing"]["num_threads"] == 1
    assert entry["players"] == ["0.5 random", f"0.5 planner {model} noise 0.2"]


def test_collect_beside_unrecorded_files_keeps_them(tmp_path: Path) -> None:
    """Published files, or those whose record was deleted, are kept, and new files get higher numbers."""
    collect(toy(), None, tmp_path)
    (tmp_path / "collect.json").unlink()
    (tmp_path / "chunk_1.pt").rename(tmp_path / "chunk_41.pt")
    before = chunks(tmp_path)
    paths = collect(toy(), None, tmp_path)
    assert paths[0].name == "chunk_42.pt"
    assert chunks(tmp_path).items() > before.items()


def test_collect_numbers_are_not_given_twice(tmp_path: Path) -> None:
    """Numbers of a recorded collection stay reserved even while none of its files exists."""
    for path in collect(toy(), None, tmp_path):
        path.unlink()
    assert collect(toy(seed=2), None, tmp_path)[0].name == "chunk_3.pt"
    assert collect(toy(), None, tmp_path)[0].name == "chunk_0.pt"


def test_collect_of_other_task_set_is_refused(tmp_path: Path) -> None:
    collect(toy(), None, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    message = r"holds data of task=tests.helpers.toy_envs:Stands-v0 \(1 tasks\), not of task=mt30 \(30 tasks\)"
    with pytest.raises(ValueError, match=message):
        collect(Config(tasks=("cup-spin",)), None, tmp_path)
    (tmp_path / "collect.json").unlink()
    with pytest.raises(ValueError, match=r"chunk_0\.pt has episodes of length 7, but the task set has 500"):
        collect(Config(tasks=("cup-spin",)), None, tmp_path)
    (tmp_path / "meta.json").touch()
    with pytest.raises(ValueError, match="is an episode store"):
        collect(toy(), None, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before - {"collect.json"} | {"meta.json"}


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ('{"format": 1}', "is damaged"), (None, "has format 2")]
)
def test_collect_with_damaged_record_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    collect(toy(), None, tmp_path)
    record = tmp_path / "collect.json"
    record.write_text(text or record.read_text().replace('"format": 1', '"format": 2'))
    before = record.read_bytes()
    with pytest.raises(ValueError, match=rf"collect.json {message}"):
        collect(toy(), None, tmp_path)
    assert record.read_bytes() == before


def test_collect_over_strange_file_is_refused(tmp_path: Path) -> None:
    collect(toy(), None, tmp_path)
    shutil.copy(tmp_path / "chunk_2.pt", tmp_path / "chunk_0.pt")
    with pytest.raises(ValueError, match=r"chunk_0.pt holds 1 episodes of task 0, but collect.json plans 3 of task 0"):
        collect(toy(), None, tmp_path)


def test_collect_continued_with_other_threads_is_refused(tmp_path: Path) -> None:
    """The number of threads decides the last bits of an agent's actions, but not of random ones."""
    agent = TDMPC2(toy())
    paths = collect(toy(), agent, tmp_path / "agent")
    random = collect(toy(), None, tmp_path / "random")
    expected = chunks(tmp_path / "random")
    torch.set_num_threads(2)
    try:
        assert collect(toy(), agent, tmp_path / "agent") == paths  # nothing to do
        paths[1].unlink()
        with pytest.raises(ValueError, match=r"was begun with num_threads=1, now it is num_threads=2, .*another seed"):
            collect(toy(), agent, tmp_path / "agent")
        random[1].unlink()
        collect(toy(), None, tmp_path / "random")
        assert chunks(tmp_path / "random") == expected
    finally:
        torch.set_num_threads(1)
    collect(toy(), agent, tmp_path / "agent")
    assert paths[1].exists()


def test_episode_returns_are_read_back(tmp_path: Path) -> None:
    reported: list[float] = []
    cfg = toy()
    paths = collect(cfg, None, tmp_path, lambda shard, returns: reported.extend(returns))
    read = episode_returns(paths, cfg)
    assert list(read) == [STANDS]
    assert read[STANDS] == pytest.approx(reported, rel=1e-6)
