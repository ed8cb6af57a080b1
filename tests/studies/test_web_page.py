"""The report as one web page: it is complete, self-contained, and shows names of runs as plain text."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tdmpc2.commands.report import main
from tdmpc2.studies import web_page
from tests.helpers.studies import PNG, write_run

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"


class _Reader(HTMLParser):
    """A parser that keeps elements with their attributes, and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str, name: str) -> Iterator[str]:
        return (attrs[name] or "" for found, attrs in self.elements if found == tag and name in attrs)


def read(page: Path) -> _Reader:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def write(*words: object) -> None:
    main([str(word) for word in words])


def test_page_has_tables_curves_and_every_run_and_needs_no_other_file(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "runs.html"
    write(sweep, "--html", page)
    reader = read(page)
    assert capsys.readouterr().out.startswith(f"Page: {page} (")
    assert [path.name for path in tmp_path.iterdir() if path != sweep] == ["runs.html"]
    pictures = list(reader.attributes("img", "src"))
    assert len(pictures) == 2
    for source in pictures:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(PNG)
    for text in ("Runs", "minus control", "Return per task, last evaluation", "cup-spin", "Every run", "21.00"):
        assert text in reader.text
    assert all(str(run) in reader.text for run in sorted(sweep.glob("*/*")))
    assert not [tag for tag, _ in reader.elements if tag in ("script", "link", "iframe", "object", "base")]
    assert "default-src 'none'" in next(reader.attributes("meta", "content"))


def test_page_beside_the_other_files_where_both_are_asked_for(sweep: Path, tmp_path: Path) -> None:
    write(sweep, "--html", tmp_path / "runs.html", "--out", tmp_path / "report")
    assert (tmp_path / "report" / "report.md").exists()
    assert (tmp_path / "runs.html").exists()


def test_page_replaces_nothing_unasked(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "runs.html"
    page.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        write(sweep, "--html", page)
    assert ended.value.code == 2
    assert "There is already" in capsys.readouterr().err
    assert page.read_text() == "mine"
    write(sweep, "--html", page, "--force")
    assert page.read_text() != "mine"


def test_names_from_files_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    """Reported runs may be a stranger's: here a folder, a task and a broken file have markup in their names."""
    root = tmp_path / "runs" / HOSTILE.replace("/", "&sol;")
    for seed in (1, 2):
        run = write_run(root, seed, 10.0)
        text = (run / "eval_tasks.csv").read_text()
        (run / "eval_tasks.csv").write_text(text.replace("cup-spin", f'"{HOSTILE.replace(chr(34), chr(34) * 2)}"'))
    (root / "1" / "<b>broken").mkdir()
    (root / "1" / "<b>broken" / "run.json").write_text("{")
    (root / "1" / "javascript:alert(3).mp4").write_bytes(b"x" * 10)
    write(tmp_path / "runs", "--html", tmp_path / "runs.html")
    reader = read(tmp_path / "runs.html")
    assert HOSTILE in reader.text
    assert "<b>broken" in reader.text
    assert not [tag for tag, _ in reader.elements if tag in ("script", "b")]
    assert not [name for _, attrs in reader.elements for name in attrs if name.startswith("on")]
    assert all(source.startswith("data:") for source in reader.attributes("img", "src"))


def test_videos_are_embedded_the_newest_of_each_task_and_large_ones_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_page, "LARGEST_VIDEO", 100)
    videos = write_run(tmp_path / "runs", 1, 10.0) / "videos"
    videos.mkdir()
    for name, content in {"hop-100.mp4": b"new", "hop-50.mp4": b"old", "large & long.mp4": b"x" * 101}.items():
        (videos / name).write_bytes(content)
    (tmp_path / "private").write_bytes(b"mine")
    (videos / "gone.mp4").symlink_to(tmp_path / "private")
    (tmp_path / "pages").mkdir()
    write(tmp_path / "runs", "--html", tmp_path / "pages" / "runs.html")
    reader = read(tmp_path / "pages" / "runs.html")
    sources = list(reader.attributes("video", "src"))
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == [b"new"]
    (link,) = reader.attributes("a", "href")
    assert re.fullmatch(r"\.\./runs/1/none/videos/large%20%26%20long\.mp4", link)
    assert "gone.mp4 cannot be read" in reader.text
