"""Fetching public results: faults of a server, checksums, and files that were changed since."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tdmpc2.studies.downloads import NAME, fetch_all, recorded
from tdmpc2.studies.leaderboard import gather
from tdmpc2.studies.sources import SOURCES
from tdmpc2.support.download import download

TABLE = b"task,seed,episode_reward\nwalker-run,0,500.0\n"
SCORES = SOURCES[0].readings[0]


class Server(BaseHTTPRequestHandler):
    """A server that answers by the end of the path: a table for the files of PWM, and every kind of trouble."""

    def do_GET(self) -> None:
        if self.path.endswith("large"):
            self._send(b"x" * 5000)
        elif self.path.endswith("short"):
            self._send(b"x" * 10, declared=100)
        elif self.path.endswith("slow"):
            self._drip()
        elif self.path.endswith("tdmpc2_mt30_scores.csv"):
            self._send(TABLE)
        else:
            self.send_error(404)

    def _send(self, content: bytes, declared: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if declared is None else declared))
        self.end_headers()
        self.wfile.write(content)

    def _drip(self) -> None:
        """Send a byte now and then, each well within the time limit of one read."""
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:  # the client has closed the connection
            pass

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "said"),
    [("absent", "the server says 404"), ("large", "more than 1,000 bytes"), ("short", "was cut short"),
     ("slow", "took more than 0.3 s")],
)  # fmt: skip
def test_bad_transfer_is_one_line(site: str, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        download(site + name, seconds=0.3 if name == "slow" else 30.0, most=1000)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/x", "results.csv"])
def test_only_the_web_is_fetched(url: str) -> None:
    with pytest.raises(ValueError, match="no address of the web"):
        download(url)


def test_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/x cannot be had"):
        download("http://127.0.0.1:9/x", seconds=2)


def test_fetch_takes_what_is_there_says_the_rest_and_records_checksums(site: str, tmp_path: Path) -> None:
    said: list[str] = []
    assert fetch_all(tmp_path, site, said.append) == [SCORES.file]
    assert (tmp_path / SCORES.file).read_bytes() == TABLE
    assert recorded(tmp_path) == {SCORES.file: hashlib.sha256(TABLE).hexdigest()}
    assert len(said) == len({source.origin for source in SOURCES})  # PWM's other file is missing, too
    assert gather([], [tmp_path]).files[SOURCES[0]] == (tmp_path / SCORES.file,)


def test_fetch_leaves_files_that_are_there(site: str, tmp_path: Path) -> None:
    (tmp_path / SCORES.file).parent.mkdir(parents=True)
    (tmp_path / SCORES.file).write_text("by hand")
    assert fetch_all(tmp_path, site, lambda text: None) == []
    assert (tmp_path / SCORES.file).read_text() == "by hand"


def test_fetch_that_was_killed_between_record_and_file_fetches_again(site: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(f'{{"{SCORES.file}": "{"0" * 64}"}}')
    assert fetch_all(tmp_path, site, lambda text: None) == [SCORES.file]
    assert recorded(tmp_path) == {SCORES.file: hashlib.sha256(TABLE).hexdigest()}


def test_fetch_on_a_disk_that_refuses_the_file_leaves_no_file_without_checksum(site: str, tmp_path: Path) -> None:
    (tmp_path / SCORES.file).parent.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / SCORES.file).parent.write_text("no folder")
    said: list[str] = []
    assert fetch_all(tmp_path, site, said.append) == []
    assert any(f"Could not write {tmp_path / SCORES.file}" in line for line in said)
    assert SCORES.file in json.loads((tmp_path / NAME).read_text())


def test_file_changed_since_its_download_is_named(site: str, tmp_path: Path) -> None:
    fetch_all(tmp_path, site, lambda text: None)
    (tmp_path / SCORES.file).write_bytes(TABLE.replace(b"500.0", b"900.0"))
    with pytest.raises(ValueError, match=r"tdmpc2_mt30_scores\.csv is not the file that was fetched"):
        recorded(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_record_that_names_files_outside_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / NAME).write_text(f'{{"{name}": "{"0" * 64}"}}')
    with pytest.raises(ValueError, match="is damaged"):
        recorded(tmp_path)
