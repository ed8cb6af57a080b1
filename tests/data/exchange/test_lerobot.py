"""LeRobotDataset v3, read back with pyarrow as LeRobot reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc2.commands import data as command
from tdmpc2.data.exchange import lerobot
from tdmpc2.data.exchange.rows import OwnData
from tests.data.exchange.test_minari import run
from tests.helpers.data_command import episodes, write_store

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", episodes())


def frames(folder: Path) -> dict[str, np.ndarray]:
    """Read all frames, as the path template of ``info.json`` finds them."""
    info = json.loads((folder / "meta/info.json").read_text())
    table = [parquet.read_table(path) for path in sorted(folder.glob("data/*/*.parquet"))]
    assert (folder / info["data_path"].format(chunk_index=0, file_index=0)).exists()
    columns: dict[str, Any] = {}
    for name, feature in info["features"].items():
        values = np.concatenate([np.array(part[name].to_pylist()) for part in table])
        assert values.reshape(len(values), -1).shape == (info["total_frames"], *feature["shape"])
        columns[name] = values.astype(feature["dtype"])
    return columns


@pytest.mark.parametrize("most_mb", [100, 0])
def test_lerobot_data_set_holds_every_step(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_mb: int
) -> None:
    """Every step is kept, whether one file holds all episodes or each episode has its own file."""
    monkeypatch.setattr(lerobot, "_FILE_MB", most_mb)
    assert run("export", store, tmp_path / "out", "form=lerobot", "fps=20", "robot=walker") == 0
    data = OwnData.open(store)
    found, first = frames(tmp_path / "out"), 0
    for number, own in enumerate(data.episodes()):
        rows = slice(first, first := first + len(own.reward))
        assert np.array_equal(found["observation.state"][rows][:, : own.spec.obs_dim], own.obs[:-1])
        assert np.array_equal(found["action"][rows][:, : own.spec.action_dim], own.action)
        assert np.array_equal(found["next.reward"][rows], own.reward)
        assert found["next.done"][rows].tolist() == [False] * (len(own.reward) - 1) + [True]
        assert found["next.terminated"][rows][-1] == own.terminated
        assert np.allclose(found["timestamp"][rows], np.arange(len(own.reward)) / 20)
        assert set(found["episode_index"][rows]) == {number}
    assert np.array_equal(found["index"], np.arange(first))

    meta = tmp_path / "out" / "meta"
    info = json.loads((meta / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 20, "walker")
    assert info["splits"] == {"train": f"0:{len(data.index)}"}
    entries = parquet.read_table(meta / "episodes/chunk-000/file-000.parquet").to_pylist()
    assert [entry["length"] for entry in entries] == data.index.lengths.tolist()
    assert entries[-1]["dataset_to_index"] == first == info["total_frames"]
    assert [entry["data/file_index"] for entry in entries] == [0 if most_mb else n for n in range(len(entries))]
    tasks = parquet.read_table(meta / "tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    named = dict(zip(tasks["task_index"].to_pylist(), tasks["task"].to_pylist(), strict=True))
    assert [named[i] for i in found["task_index"][np.flatnonzero(found["next.done"])]] == [
        e["tasks"][0] for e in entries
    ]


def test_lerobot_statistics_are_those_of_all_frames(store: Path, tmp_path: Path) -> None:
    """Statistics are merged from those of single episodes, which are never in memory together."""
    assert run("export", store, tmp_path / "out", "form=lerobot") == 0
    found, stats = frames(tmp_path / "out"), json.loads((tmp_path / "out/meta/stats.json").read_text())
    for name in ("observation.state", "action", "next.reward", "timestamp"):
        values = found[name].reshape(len(found[name]), -1).astype(np.float64)
        for key, expected in (
            ("min", values.min(0)),
            ("max", values.max(0)),
            ("mean", values.mean(0)),
            ("std", values.std(0)),
        ):
            assert np.allclose(stats[name][key], expected, atol=1e-6), (name, key)
        assert stats[name]["count"] == [len(values)]


def test_interrupted_export_leaves_nothing_and_the_next_one_begins_anew(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error removes the partial export; a kill leaves one, which the next export replaces."""
    original, calls = lerobot._Writer.add, []

    def fail(writer: Any, episode: Any) -> None:
        calls.append(episode.number)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        original(writer, episode)

    with monkeypatch.context() as patch:
        patch.setattr(lerobot._Writer, "add", fail)
        assert run("export", store, tmp_path / "out", "form=lerobot") == 2
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("a file")
    assert run("export", store, tmp_path / "out", "form=lerobot") == 2, "a folder of somebody else's"
    (tmp_path / ".out.partial" / "written-by-tdmpc2-export").write_text("as after a kill")
    assert run("export", store, tmp_path / "out", "form=lerobot") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", "meta"]


def test_careless_frames_per_second_are_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["export", str(store), str(tmp_path / "out"), "form=lerobot", "fps=0"])
    assert "fps=0 must be above 0" in capsys.readouterr().err


def test_options_of_the_other_form_are_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, form in (("name=x", "lerobot"), ("storage=arrow", "lerobot"), ("fps=3", "minari"), ("robot=x", "minari")):
        assert run("export", store, tmp_path / "out", f"form={form}", word) == 2
        assert f"says nothing with form={form}" in capsys.readouterr().err
