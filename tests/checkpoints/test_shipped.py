"""Models that come with the project: they are found by name and listed, and a user's own file comes first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdmpc2 import load_agent
from tdmpc2.checkpoints import shipped
from tdmpc2.checkpoints.files import file_sha256, load_file
from tdmpc2.checkpoints.shipped import SHIPPED, Shipped
from tdmpc2.commands import checkpoint, quantize
from tdmpc2.config import Config
from tdmpc2.nn.world_model import WorldModel
from tests.helpers.agents import small_config
from tests.helpers.reference import REPO


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project that ships one small model, and work in another folder."""
    from tdmpc2.agent import TDMPC2

    cfg: Config = small_config()
    path = tmp_path / "project" / "models" / "student_int8.pt"
    TDMPC2(cfg).save(path)
    row = Shipped(path.name, path.stat().st_size, file_sha256(path))
    monkeypatch.setattr(shipped, "SHIPPED", {"student": row})
    monkeypatch.setattr(shipped, "source_tree", lambda: tmp_path / "project")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_agent_is_loaded_by_the_name_of_a_model(root: Path) -> None:
    agent = load_agent("student", device="cpu", quiet=True)
    assert isinstance(agent.model, WorldModel)
    assert agent.cfg.task == "mt30"


def test_commands_take_the_name_as_a_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.main(["inspect", "student"])
    assert file_sha256(root / "models" / "student_int8.pt") in capsys.readouterr().out
    assert load_file(Path("student")).model.keys() == load_file(root / "models" / "student_int8.pt").model.keys()


def test_nothing_is_written_beside_a_model_of_the_project(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize.main(["student", "recipes=fp16", "plans=0", "repeats=1", "device=cpu"])
    assert [path.name for path in (root / "models").iterdir()] == ["student_int8.pt"]
    assert Path("student_fp16.pt").is_file()
    before = file_sha256(root / "models" / "student_int8.pt")
    with pytest.raises(SystemExit):
        checkpoint.main(["card", "student", "overwrite=true"])
    assert "out is missing: student is no file of yours and stays as it is" in capsys.readouterr().err
    assert file_sha256(root / "models" / "student_int8.pt") == before


def test_command_with_a_name_that_is_nearly_one_says_which_there_are(root: Path) -> None:
    with pytest.raises(ValueError, match=r"'studnet' is neither a file .*Did you mean 'student'"):
        load_file("studnet")
    with pytest.raises(ValueError, match=r"cup-spin.* does not exist"):
        load_file("cup-spin")


def test_unknown_name_says_which_there_are(root: Path) -> None:
    with pytest.raises(ValueError, match=r"'studnet' is neither a file .*\(student\)\. Did you mean 'student'"):
        load_agent("studnet")


def test_file_of_that_name_comes_first(root: Path) -> None:
    """A user's own file comes before the model of the same name."""
    Path("student").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"student \(16 bytes\) is truncated or not a checkpoint|was refused"):
        load_agent("student")


def test_name_without_its_file_says_where_it_is(root: Path) -> None:
    (root / "models" / "student_int8.pt").unlink()
    with pytest.raises(ValueError, match=r"student_int8\.pt is missing.*folder models/ .*sha256 [0-9a-f]{64}"):
        load_agent("student")


def test_other_file_in_the_place_of_a_model_is_refused(root: Path) -> None:
    """The model of another version would not have the numbers of the documentation."""
    with (root / "models" / "student_int8.pt").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=r"student_int8\.pt is not the file of this version.*sha256 [0-9a-f]{64}"):
        load_agent("student")


def test_file_that_lies_where_an_installed_copy_is_used_is_not_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed copy takes models from its package only, not from ``models/`` in the working directory."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(shipped, "source_tree", lambda: None)
    with pytest.raises(ValueError, match=r"checkpoints/models/student_int8\.pt is missing"):
        load_agent("student")


def test_source_distribution_holds_every_model() -> None:
    assert set(re.findall(r"include models/(\S+\.pt)", (REPO / "MANIFEST.in").read_text())) == {
        row.file for row in SHIPPED.values()
    }


def test_name_of_a_version_without_models_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "SHIPPED", {})
    with pytest.raises(
        ValueError, match=r"a model that comes with this version \(none yet\).*models/README\.md"
    ) as error:
        load_agent("student")
    assert "\n" not in str(error.value)


def test_path_is_not_taken_for_a_name() -> None:
    with pytest.raises(ValueError, match=r"models/student does not exist"):
        load_agent("models/student")


def test_readme_of_models_lists_the_same_files() -> None:
    """The table in models/README.md has the name, size and checksum of every shipped file, and each file exists."""
    text = (REPO / "models" / "README.md").read_text()
    table = text.partition("| name | file | bytes | sha256 |")[2].partition("## Card of a file")[0]
    rows = re.findall(r"^\| `?([\w-]+)`? \| `?([\w.-]+)`? \| ([\d,]+) \| `?([0-9a-f]{64})`? \|$", table, re.MULTILINE)
    listed = {name: Shipped(file, int(size.replace(",", "")), sha256) for name, file, size, sha256 in rows}
    assert listed == SHIPPED
    for row in SHIPPED.values():
        assert (REPO / "models" / row.file).stat().st_size == row.bytes
        assert file_sha256(REPO / "models" / row.file) == row.sha256
