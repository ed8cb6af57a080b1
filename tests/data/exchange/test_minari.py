"""Data sets of Minari: three public ones imported, trained on, exported again and compared bit for bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tdmpc2.commands import data as command
from tdmpc2.config import Config
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.training.offline import train
from tests.helpers.minari_sets import SETS, STEPS, record
from tests.helpers.runs import TINY

pytest.importorskip("minari")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")
pytest.importorskip("h5py")


def run(*words: object) -> int:
    try:
        command.main([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def episodes_of(dataset_id: str) -> list[Any]:
    import minari

    return list(minari.load_dataset(dataset_id))


def flat(obs: Any) -> np.ndarray:
    parts = [flat(obs[key]) for key in sorted(obs)] if isinstance(obs, dict) else [obs.reshape(len(obs), -1)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def same_bits(one: np.ndarray, two: np.ndarray) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


@pytest.mark.parametrize("task", SETS)
def test_public_data_set_is_imported_trained_on_and_exported_bit_for_bit(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sets are of MuJoCo with terminations, of dm_control, and of an environment with dictionaries."""
    if task.startswith("Fetch"):
        pytest.importorskip("gymnasium_robotics")
    dataset_id = record(task, tmp_path / "theirs", monkeypatch)
    theirs = episodes_of(dataset_id)
    named = [f"task={'gymnasium_robotics:' if task.startswith('Fetch') else ''}{task}"] * (task != "Hopper-v5")
    assert run("import", dataset_id, tmp_path / "store", "form=minari", *named) == 0

    store = EpisodeStore.open(tmp_path / "store")
    assert store.index.terminated.tolist() == [bool(episode.terminations[-1]) for episode in theirs]
    assert store.index.lengths.tolist() == [len(episode.rewards) for episode in theirs]
    terminated = bool(store.index.terminated.any())
    assert terminated == (task == "Hopper-v5")
    sizes = {name: value for name, value in TINY.items() if name not in ("tasks", "steps")}
    cfg = Config(
        task=store.meta.task, task_specs=store.meta.tasks, mode="offline", data_dir=str(store.path), steps=2,
        episodic=terminated, work_dir=str(tmp_path / "run"), **sizes,
    )  # fmt: skip
    assert train(cfg, None).exists()

    monkeypatch.chdir(tmp_path)
    assert run("export", "store", "ours", "form=minari", "name=again") == 0
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "ours"))
    (folder,) = (tmp_path / "ours").glob("*/again-v0")
    ours = episodes_of(f"{folder.parent.name}/again-v0")
    for own, their in zip(ours, theirs, strict=True):
        assert same_bits(own.observations, flat(their.observations))
        assert same_bits(own.actions, their.actions.astype(np.float32))
        assert same_bits(own.rewards, their.rewards.astype(np.float32))
        assert own.terminations.tolist() == their.terminations.tolist()
        assert own.truncations.tolist() == their.truncations.tolist()

    assert run("import", folder, tmp_path / "second", "form=minari", *named) == 0
    assert (tmp_path / "second" / "rows.npy").read_bytes() == (tmp_path / "store" / "rows.npy").read_bytes()


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_other_storages_are_imported_as_hdf5_is(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    for storage in ("hdf5", form):
        dataset_id = record("Hopper-v5", tmp_path / storage, monkeypatch, storage)
        assert run("import", dataset_id, tmp_path / f"{storage}_store", "form=minari") == 0
    rows = [(tmp_path / f"{storage}_store" / "rows.npy").read_bytes() for storage in ("hdf5", form)]
    assert rows[0] == rows[1]
    assert run("export", tmp_path / "hdf5_store", tmp_path / "ours", "form=minari", f"storage={form}") == 0
    (folder,) = (tmp_path / "ours").glob("*/episodes-v0")
    assert run("import", folder, tmp_path / "again", "form=minari") == 0
    assert (tmp_path / "again" / "rows.npy").read_bytes() == rows[0]


def test_actions_of_other_bounds_are_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pendulum's torque ranges from -2 to 2, stored actions from -1 to 1."""
    monkeypatch.setitem(SETS, "Pendulum-v1", 1)
    dataset_id = record("Pendulum-v1", tmp_path / "theirs", monkeypatch)
    assert run("import", dataset_id, tmp_path / "store", "form=minari") == 0
    stored = np.load(tmp_path / "store" / "rows.npy")["action"][1 : STEPS + 1]
    assert np.allclose(stored, episodes_of(dataset_id)[0].actions / 2)


def test_data_of_a_task_set_are_stored_with_its_ids_and_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data of a single task can be imported as data of mt30, with its ids and padding."""
    dataset_id = record("walker-walk", tmp_path / "theirs", monkeypatch)
    words = ("import", dataset_id, tmp_path / "store", "form=minari", "task=walker-walk", "task_set=mt30")
    assert run(*words) == 0
    store = EpisodeStore.open(tmp_path / "store")
    assert (store.meta.task, len(store.meta.tasks), store.task.tolist()) == ("mt30", 30, [1, 1])
    assert run("export", tmp_path / "store", tmp_path / "ours", "form=minari") == 0
    assert [folder.name for folder in (tmp_path / "ours").iterdir()] == ["walker-walk"]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record a data set and return its folder."""
    return tmp_path / "theirs" / record("Hopper-v5", tmp_path / "theirs", monkeypatch, episodes=1) / "data"


def set_metadata(folder: Path, **entries: Any) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_environment_that_a_file_names_is_not_imported(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set may name a stranger's module as the home of its environment; it must not be imported."""
    monkeypatch.setattr(gymnasium, "make", lambda *_, **__: pytest.fail("an environment was built"))
    set_metadata(hopper, env_spec=json.dumps({"id": "evil_module:Thing-v0", "entry_point": "evil_module:Thing"}))
    said = refused(capsys, "import", hopper, tmp_path / "store", "form=minari")
    assert "is of 'evil_module:Thing-v0', which is not known here: name its task" in said


@pytest.mark.parametrize("kind", ["text", "numbers", "beside"])
def test_columns_that_unfold_beyond_their_file_are_not_read(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 829 bytes took 1.3 GB, and any file could take all there is."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    hopper = tmp_path / "theirs" / record("Hopper-v5", tmp_path / "theirs", monkeypatch, "parquet", episodes=1) / "data"
    (path,) = hopper.rglob("*.parquet")
    table = parquet.read_table(path)
    many = 900
    text = pyarrow.DictionaryArray.from_arrays(np.zeros(many, np.int8), ["x" * 1_000_000])
    wide = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.zeros(many * 20_000)), 20_000)
    columns = {name: pyarrow.array(np.zeros(many)) for name in table.column_names}
    columns |= {"text": {"observations": text}, "numbers": {"observations": wide}, "beside": {"other": text}}[kind]
    parquet.write_table(pyarrow.table(columns), path)
    assert path.stat().st_size < 200_000
    said = refused(capsys, "import", hopper, tmp_path / "store", "form=minari")
    expected = {
        "text": "a column holds dictionary<", "numbers": "declares 144,", "beside": "numbers in 900 rows",
    }[kind]  # fmt: skip
    assert expected in said


def test_links_out_of_an_hdf5_file_are_not_followed(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    with h5py.File(tmp_path / "private.h5", "w") as other:
        other["secret"] = np.zeros(40)
    with h5py.File(hopper / "main_data.hdf5", "a") as file:
        del file["episode_0"]["rewards"]
        file["episode_0"]["rewards"] = h5py.ExternalLink(str(tmp_path / "private.h5"), "secret")
    said = refused(capsys, "import", hopper, tmp_path / "store", "form=minari")
    assert "'rewards' is missing or not in this file" in said


def test_key_that_is_a_path_through_a_link_is_not_followed(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    with h5py.File(tmp_path / "private.h5", "w") as other:
        other["secret"] = np.zeros((41, 11))
    with h5py.File(hopper / "main_data.hdf5", "a") as file:
        del file["episode_0"]["observations"]
        file["episode_0"].create_group("observations")["ext"] = h5py.ExternalLink(str(tmp_path / "private.h5"), "/")
    space = json.loads(json.loads((hopper / "metadata.json").read_text())["observation_space"])
    set_metadata(hopper, observation_space=json.dumps({"type": "Dict", "subspaces": {"ext/secret": space}}))
    said = refused(capsys, "import", hopper, tmp_path / "store", "form=minari", "task=Hopper-v5")
    assert "'ext/secret' is missing or not in this file" in said


def test_named_pipe_instead_of_a_file_is_one_line(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hopper / "main_data.hdf5").unlink()
    os.mkfifo(hopper / "main_data.hdf5")
    assert "is a named pipe" in refused(capsys, "import", hopper, tmp_path / "store", "form=minari")


def test_declared_array_that_is_not_stored_is_refused(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of a thousand bytes may declare an array of 16 GB, which must not be allocated."""
    import h5py

    with h5py.File(hopper / "main_data.hdf5", "a") as file:
        del file["episode_0"]["rewards"]
        file["episode_0"].create_dataset("rewards", (2**31,), "f8", chunks=(2**20,))
    assert "rewards is no array of numbers in this file" in refused(
        capsys, "import", hopper, tmp_path / "store", "form=minari"
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"data_format": "zarr"}, "data_format is 'zarr', expected one of hdf5, arrow, parquet"),
        ({"observation_space": '{"type": "Text"}'}, "and only vectors of numbers are read"),
        ({"observation_space": "[" * 5000}, "observation_space: it is"),
        ({"action_space": '{"type": "Discrete", "n": 3}'}, "it is a Discrete, and only vectors of numbers are read"),
        (
            {"action_space": '{"type":"Box","shape":[3],"dtype":"float32","low":[-1,-1,1],"high":[1,1,1]}'},
            "actions must be real numbers with finite bounds",
        ),
        ({"total_episodes": 2}, "'episode_1' is missing or not in this file"),
        ({"tdmpc2_task": "walker-walk"}, "obs has shape"),
    ],
)
def test_damaged_or_other_data_set_is_one_line(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], message: str
) -> None:
    set_metadata(hopper, **entries)
    assert message in refused(capsys, "import", hopper, tmp_path / "store", "form=minari")
    assert not (tmp_path / "store").exists()


def test_inner_damage_of_an_hdf5_file_is_one_line(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library opens a damaged file and fails later in many ways; each ends in one line."""
    path = hopper / "main_data.hdf5"
    good, refusals = path.read_bytes(), 0
    for place in range(100, len(good), len(good) // 12):
        path.write_bytes(good[:place] + b"\xff" * 64 + good[place + 64 :])
        code = run("import", hopper, tmp_path / f"store{place}", "form=minari")
        said = capsys.readouterr().err
        assert code in (0, 2)
        assert code == 0 or said.startswith("error: ")
        refusals += code == 2
    assert refusals > 2


def test_unknown_source_and_existing_target_are_one_line(
    hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no data set of Minari" in refused(capsys, "import", "no/such-v0", tmp_path / "store", "form=minari")
    (hopper / "main_data.hdf5").write_bytes(b"nothing")
    assert "cannot be read as HDF5" in refused(capsys, "import", hopper, tmp_path / "store", "form=minari")


def test_export_replaces_nothing(hopper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An export is refused if its folder exists, or if Minari does not accept the name."""
    assert run("import", hopper, tmp_path / "store", "form=minari") == 0
    (tmp_path / "mine").mkdir()
    for form in ("minari", "lerobot"):
        assert "mine exists" in refused(capsys, "export", tmp_path / "store", tmp_path / "mine", f"form={form}")
    said = refused(capsys, "export", tmp_path / "store", tmp_path / "new", "form=minari", "name=a/../b")
    assert "must be of letters, digits and _" in said
    assert not [path.name for path in tmp_path.iterdir() if "new" in path.name]


def test_changed_file_of_an_episode_is_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of Arrow are files of their own."""
    pytest.importorskip("pyarrow")
    dataset_id = record("Hopper-v5", tmp_path / "sets", monkeypatch, "arrow")
    selections = []
    for name in ("first", "second"):
        assert run("import", dataset_id, tmp_path / name, "form=minari") == 0
        selections.append(EpisodeStore.open(tmp_path / name).meta.selection)
        os.utime(next((tmp_path / "sets").rglob("0/*.arrow")), ns=(0, 0))
    assert len(set(selections)) == 2
