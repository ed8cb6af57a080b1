"""The notebooks run from their first cell to their last, and are kept without outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.forks import environment
from tests.helpers.reference import REPO, SHARED

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat")
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
#: Replaces the content of the cell of parameters.
SMALL = {
    "quickstart": "STEPS = 25\nBUDGET = {'num_samples': 32, 'iterations': 1}",
    "imagination": "STEPS, AHEAD = 12, 4\nBUDGET = {'num_samples': 48, 'iterations': 2, 'horizon': 3}",
    "distil_your_own": "EPISODES, STEPS = 3, 20",
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_every_notebook_has_a_small_form() -> None:
    assert sorted(SMALL) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    """Outputs are large, differ from run to run, and may show what is on somebody's machine."""
    book = read(path)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    assert book.cells[0].source.startswith("# ")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy what the notebooks need, so that their outputs are not written into the repository."""
    (tmp_path / "notebooks").mkdir()
    for name in ("student_config", "generic.yaml", "docs"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.setenv("TDMPC2_SHARED", str(SHARED))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    yield tmp_path / "notebooks"
    assert {path.name for path in (tmp_path / "notebooks").iterdir()} <= {"untrained.pt"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Notebooks run at tiny size, with the published student if it is there and a model made on the spot otherwise."""
    nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient")
    pytest.importorskip("ipykernel", reason="notebooks need ipykernel")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = read(path)
    for cell in book.cells:
        if cell.metadata.get("tags") == ["parameters"]:
            cell.source += f"\n{SMALL[path.stem]}"
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in shown if output.output_type == "stream")
    kinds = {kind for output in shown if output.output_type == "display_data" for kind in output.data}
    assert "image/png" in kinds
    assert "Warning" not in printed
    if path.stem == "quickstart":
        videos = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
        assert any("data:video/mp4;base64," in video for video in videos)
        assert "return" in printed
    if path.stem == "distil_your_own":
        assert "student, int8" in printed
