"""Files are read only if they are regular, bad content ends in one line, and all readers share the checks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.checkpoints.files import file_sha256, load_file
from tdmpc2.config import Config
from tdmpc2.data.chunks import read_chunk
from tdmpc2.data.collect_record import Record
from tdmpc2.data.source import chunk_tasks
from tdmpc2.data.store.meta import StoreMeta
from tdmpc2.data.store.selection import chunk_fingerprints
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.tools.verify import verify
from tdmpc2.studies.runs import read_run
from tdmpc2.support.csv_files import read_csv
from tdmpc2.support.files import read_json
from tdmpc2.support.reading import read_text
from tdmpc2.support.text import shown
from tdmpc2.training import run_record
from tdmpc2.training.evaluations import read_scores
from tests.helpers.data import SPECS
from tests.helpers.data_command import episodes, write_chunks, write_store

PACKAGE = Path(__file__).parents[2] / "tdmpc2"


def _named_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a named pipe"


def _device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "is a device"


def _directory(path: Path) -> str:
    path.mkdir()
    return "is a directory"


def _circle(path: Path) -> str:
    path.symlink_to(path)
    return "symbolic links"


def _store_rows(path: Path) -> Any:
    return EpisodeStore.open(path.parent)


#: Reader -> name of the file it reads and how it is called with the path of that file.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "checkpoint": ("x.pt", load_file),
    "checksum of a teacher": ("x.pt", file_sha256),
    "chunk": ("chunk_0.pt", read_chunk),
    "fingerprint of a chunk": ("chunk_0.pt", lambda path: chunk_fingerprints(path.parent)),
    "rows of a store": ("rows.npy", _store_rows),
    "tasks of a store": ("task.npy", _store_rows),
    "record of a store": ("meta.json", StoreMeta.read),
    "record of collections": ("collect.json", lambda path: Record.read(path.parent, "three", SPECS)),
    "tasks of chunk files": ("collect.json", lambda path: chunk_tasks(path.parent)),
    "record of a run": ("run.json", lambda path: run_record.read_record(path)),
    "scores of a run": ("evaluations.json", lambda path: read_scores(path.parent, "normalized score")),
    "any record": ("x.json", read_json),
    "CSV": ("train.csv", read_csv),
}


def _place(directory: Path, name: str) -> Path:
    """Return the path of a file that the test will write, among good files."""
    if name.endswith(".npy"):
        (write_store(directory / "d", episodes()) / name).unlink()
    else:
        (directory / "d").mkdir()
    return directory / "d" / name


@pytest.mark.parametrize("kind", [_named_pipe, _device, _directory])
@pytest.mark.parametrize("reader", READERS)
def test_reader_of_what_is_no_file_says_so_at_once(tmp_path: Path, reader: str, kind: Callable[[Path], str]) -> None:
    """A named pipe used to stop every command forever, and a device to fill the memory."""
    name, read = READERS[reader]
    path = _place(tmp_path, name)
    words = kind(path)
    with pytest.raises((ValueError, OSError), match=rf"{re.escape(str(path))}.*{words}") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", ["checkpoint", "chunk", "rows of a store", "record of a store"])
def test_reader_of_link_in_a_circle_names_it(tmp_path: Path, reader: str) -> None:
    name, read = READERS[reader]
    path = _place(tmp_path, name)
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)}.*{_circle(path)}"):
        read(path)


def test_checkpoint_that_is_a_dangling_link_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "x.pt").symlink_to("gone.pt")
    with pytest.raises(ValueError, match=r"x\.pt is a link to gone\.pt, which is not there"):
        load_file(tmp_path / "x.pt")


BAD_JSON = {
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep object": ('{"a":' * 100_000, "nested too deeply"),
    "long number": ('{"format": ' + "9" * 5000 + "}", "4300 digits"),
    "a list": ("[1]", ""),
    "null": ("null", ""),
    "no text": ("\x00\x01", ""),
    "cut": ('{"format": 1', ""),
}


@pytest.mark.parametrize("case", BAD_JSON)
@pytest.mark.parametrize("reader", [name for name, (file, _) in READERS.items() if file.endswith(".json")])
def test_reader_of_bad_json_names_the_file(tmp_path: Path, reader: str, case: str) -> None:
    """Deeply nested lists or numbers of 5,000 digits used to end in tracebacks or unnamed files."""
    name, read = READERS[reader]
    path, (text, words) = _place(tmp_path, name), BAD_JSON[case]
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*{words}") as error:
        read(path)
    assert len(str(error.value)) < len(str(path)) + 600


def test_message_does_not_show_a_value_of_megabytes(tmp_path: Path) -> None:
    """A value of 5 MB in run.json used to be shown whole, including control characters."""
    content = {**Config().to_dict(), "steps": "\x1b[2J" + "x" * 5_000_000}
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="steps=") as error:
        run_record.read_record(tmp_path / "run.json")
    assert len(str(error.value)) < 1000
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("case", range(5))
def test_shown_value_is_short_and_printable(case: int) -> None:
    value = (10**5000, "x" * 10**6, [[0]] * 10**5, {"a": "y" * 1000}, b"\x00" * 1000)[case]
    assert len(shown(value)) <= 80
    assert shown(value).isprintable()


def test_read_text_of_larger_file_than_its_kind_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "run.json", "wb") as file:
        os.truncate(file.fileno(), 10**12)  # a sparse file takes no room on the disk
    with pytest.raises(ValueError, match=r"run\.json has more than 67,108,864 bytes"):
        read_text(tmp_path / "run.json")


@pytest.mark.parametrize("field", ["x" * 200_000, "inf"])
def test_csv_that_is_no_log_is_a_line_of_the_run(tmp_path: Path, field: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(Config().to_dict()))
    (tmp_path / "train.csv").write_text(f"step,loss\n{field},1\n")
    with pytest.raises(ValueError, match=r"train\.csv is damaged"):
        read_run(tmp_path)


def test_verify_of_data_with_named_pipe_reports_it(tmp_path: Path) -> None:
    root = write_chunks(tmp_path / "d", episodes())
    (root / "chunk_1.pt").unlink()
    os.mkfifo(root / "chunk_1.pt")
    (problem,) = verify(root).problems
    assert problem.startswith(f"{root / 'chunk_1.pt'} is a named pipe")


#: Modules that may open files in ways of their own: the readers themselves, files of the system and of this package,
#: and files that the module itself has just written or checked.
OWN_WAY = {
    "support/reading.py", "support/runtime.py", "support/processes.py", "support/version.py", "support/cgroups.py",
    "commands/doctor.py", "tracking/console.py",
    "acceleration/cpu/library.py", "acceleration/cpu/speed.py", "acceleration/cpu/build.py",
    "distributed.py", "checkpoints/reading.py",
    "data/chunks.py", "commands/yaml_files.py", "checkpoints/publishing.py", "export/native.py",
    "export/native_model.py", "studies/web_page.py", "envs/task_sets.py",  # its text comes from support/reading.py
}  # fmt: skip
READING = re.compile(
    r"\.read_text\(|\.read_bytes\(|json\.load\(|np\.load\(|torch\.load\(|yaml\.|OmegaConf\.load|"
    r"(?<![\w.])open\([^)\n]*[\"']rb?[\"']|\.open\([\"']r|\.open\(encoding"
)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_reads_files_of_others_by_the_checked_way(path: Path) -> None:
    """A reader that opens a file without the checks would wait forever for a named pipe."""
    if str(path.relative_to(PACKAGE)) in OWN_WAY:
        return
    found = [line.strip() for line in path.read_text().splitlines() if READING.search(line) and "``" not in line]
    assert not found, "use tdmpc2.support.reading, or tdmpc2.checkpoints.reading for tensors"
