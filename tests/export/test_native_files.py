"""The files of `tdmpc2 export --to native`, without building them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tdmpc2.acceleration.cpu import build
from tdmpc2.commands.export import main
from tdmpc2.export import native
from tdmpc2.export.native_model import LARGEST_HEADER, read_card, safetensors, write_model
from tdmpc2.export.request import Request
from tests.helpers.native import checkpoint, source_of


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("native") / "model.pt")


def test_model_file_opens_with_the_safetensors_package(file: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.torch")
    source = source_of(file, "int8", ["walker-walk"])
    write_model(tmp_path / "model.safetensors", source)
    tensors = package.load_file(tmp_path / "model.safetensors")
    layer = source.agent.model._dynamics[1]
    assert torch.equal(tensors["dynamics.1.weight"], layer.weight)
    assert tensors["dynamics.1.weight"].dtype == torch.int8
    assert torch.equal(tensors["dynamics.1.scale"], layer.scale[:, 0])
    assert tensors["task_embeddings"].shape == (1, 9)


def test_card_says_what_a_robot_has_to_know(file: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", source_of(file, "fp32", ["pendulum-spin"], num_samples=32))
    card = read_card(tmp_path / "model.safetensors")
    assert [task["name"] for task in card["tasks"]] == ["pendulum-spin"]
    assert (card["budget"]["num_samples"], card["budget"]["iterations"]) == (32, 3)
    assert set(card["networks"]["products"]) == {"fp32"}
    assert card["action"] == {"size": 6, "low": -1.0, "high": 1.0}


@pytest.mark.parametrize(
    ("changes", "version", "additions"),
    [
        ({}, 1, {}),
        ({"plan_start": "policy"}, 2, {"start_at_policy": 1}),
        ({"episodic": True}, 3, {"start_at_policy": 0, "episodic": 1}),
        ({"episodic": True, "plan_start": "policy"}, 3, {"start_at_policy": 1, "episodic": 1}),
    ],
)
def test_model_has_the_oldest_format_that_says_how_it_plans(
    tmp_path: Path, changes: dict[str, object], version: int, additions: dict[str, int]
) -> None:
    """An older library can open every model that it can plan with, and refuses all others."""
    write_model(tmp_path / "model.safetensors", source_of(checkpoint(tmp_path / "model.pt", **changes), "fp32"))
    networks = read_card(tmp_path / "model.safetensors")["networks"]
    assert networks["format"] == version
    assert {name: networks[name] for name in ("start_at_policy", "episodic") if name in networks} == additions
    assert len(networks["products"]) == networks["encoder_layers"] + 3 * (3 + 3 + ("episodic" in changes))


def test_weights_that_fp16_holds_exactly_take_half_the_room(file: Path, tmp_path: Path) -> None:
    """Weights that came from an fp16 file are stored in fp16 again."""
    source = source_of(file, "fp32", ["walker-walk"])
    write_model(tmp_path / "full.safetensors", source)
    with torch.no_grad():
        for parameter in source.agent.model.parameters():
            parameter.copy_(parameter.half())
    write_model(tmp_path / "half.safetensors", source)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.75 * full


def test_model_of_the_project_is_exported_into_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export used to go into the working directory, where --force replaced the user's README.md."""
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["walker", "--to", "native", "--force"])
    assert ended.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "walker_fp32_native"]
    assert Path("README.md").read_text() == "mine"


def test_folder_has_every_source_once(tmp_path: Path) -> None:
    native.write_sources(tmp_path)
    written = {path.name for path in (tmp_path / "src").iterdir()} | {
        path.name for path in (tmp_path / "include").iterdir()
    }
    own = {path.name for path in build.NATIVE.iterdir() if path.suffix in (".h", ".hpp", ".cpp")} - {"example.cpp"}
    kernels = {path.name for path in build.FOLDER.iterdir() if path.suffix in (".h", ".cpp")} - {*build.FOR_TRAINING}
    assert written == own | kernels
    variants = (tmp_path / "cmake" / "variants.cmake").read_text()
    for machine, found in build.VARIANTS.items():
        assert f"set(TDMPC2_VARIANTS_{machine} {' '.join(found)})" in variants


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("walker-walk", {"obs": "rgb"}, "obs=rgb: --to native writes models of states; --to onnx"),
        ("walker-walk", {"simnorm_dim": 6}, "simnorm_dim=6: the CPU kernels take one of .*--to onnx"),
        ("walker-walk", {"iterations": 5000}, "iterations=5000: --to native writes models with at most 4,095"),
    ],
)
def test_model_that_the_kernels_cannot_compute_is_refused(
    tmp_path: Path, task: str, changes: dict[str, object], message: str
) -> None:
    path = checkpoint(tmp_path / "model.pt", task, mode="online", **changes)
    with pytest.raises(ValueError, match=message):
        native.export(Request(path, out=tmp_path / "robot"))
    assert not (tmp_path / "robot").exists()


def test_existing_files_are_left_unless_they_may_be_replaced(file: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"There is already .*CMakeLists.txt: --force replaces"):
        native.export(Request(file, tasks=("walker-walk",), out=tmp_path))
    assert (tmp_path / "CMakeLists.txt").read_text() == "mine"


def test_data_of_a_check_are_read_before_a_library_is_built(file: Path, tmp_path: Path) -> None:
    """The data used to be ignored, so that a directory that does not exist passed."""
    with pytest.raises(ValueError, match="nowhere"):
        native.export(Request(file, out=tmp_path / "robot", check=True, data=str(tmp_path / "nowhere")))


def test_number_of_environments_belongs_to_the_library(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="envs=2: --to native leaves their number to tdmpc2_open"):
        native.export(Request(file, envs=2, out=tmp_path))


def test_card_larger_than_a_reader_takes_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {LARGEST_HEADER:,}"):
        safetensors({}, {"tdmpc2": "x" * LARGEST_HEADER})
