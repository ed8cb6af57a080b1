"""A stand-in of a hub's HTTP interface: repositories in memory, read by revision, written by commits."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_secretsecretsecretsecret"


class Hub:
    """The state of the stand-in.

    Attributes:
        files: repository -> revision -> file -> content.
        private: repositories that were made private.
        commits: message of each commit, in order.
        requests: method and path of each request, in order.
        tokens: what requests were authorised with.
        refuse: HTTP status that every request is answered with; None: none.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.commits: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.refuse: int | None = None
        self.url = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, content: Any, status: int = 200) -> None:
            self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            hub.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.refuse:
                return self.answer(hub.refuse, X_Error_Message="no")
            parts = path.strip("/").split("/")
            if parts[:3] == ["api", "repos", "create"]:
                return self.create(json.loads(body))
            if parts[0] == "api" and parts[1] == "models":
                return self.api("/".join(parts[2:4]), parts[4:], body)
            if parts[:2] == ["api", "validate-yaml"]:
                return self.json({"errors": [], "warnings": []})
            if len(parts) > 4 and parts[2] == "resolve":
                return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            return self.answer(404)

        do_GET = do_HEAD = do_POST = handle_any

        def create(self, wanted: dict[str, Any]) -> None:
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if name in hub.files:
                self.json({"url": f"{hub.url}/{name}"}, 409)
                return
            hub.files[name] = {"main": {}}
            if wanted.get("private") or wanted.get("visibility") == "private":
                hub.private.add(name)
            self.json({"url": f"{hub.url}/{name}"})

        def api(self, name: str, rest: list[str], body: bytes) -> None:
            if name not in hub.files:
                self.answer(404, X_Error_Code="RepoNotFound")
                return None
            if rest[:1] == ["preupload"]:
                wanted = json.loads(body)["files"]
                answer = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
                return self.json({"files": answer})
            if rest[:1] == ["commit"]:
                lines = [json.loads(line) for line in body.splitlines()]
                files = hub.files[name].setdefault(rest[1], {})
                for line in lines:
                    if line["key"] == "header":
                        hub.commits.append(line["value"]["summary"])
                    elif line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self.json({"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True})
            revision = rest[1] if rest[:1] == ["revision"] else "main"
            if revision not in hub.files[name]:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": file} for file in hub.files[name][revision]]
            return self.json(
                {"id": name, "sha": _commit(revision), "siblings": siblings, "private": name in hub.private, "tags": []}
            )

        def resolve(self, name: str, revision: str, file: str) -> None:
            if name not in hub.files:
                return self.answer(404, X_Error_Code="RepoNotFound")
            named = next((known for known in hub.files[name] if revision in (known, _commit(known))), None)
            if named is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            commit = {"X_Repo_Commit": _commit(named)}
            if file not in hub.files[name][named]:
                return self.answer(404, X_Error_Code="EntryNotFound", **commit)
            content = hub.files[name][named][file]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, ETag=etag, Accept_Ranges="bytes", **commit)

    return Handler


def _commit(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(monkeypatch: pytest.MonkeyPatch, url: str, cache: Any, offline: bool = False) -> None:
    """Point the client of this process to a hub and a cache, which it otherwise learns when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, value in (
        ("ENDPOINT", url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", str(cache)),
        ("HF_HUB_OFFLINE", offline),
        ("HF_HUB_DISABLE_TELEMETRY", True),
        ("HF_HUB_DISABLE_XET", True),
    ):
        monkeypatch.setattr(constants, name, value)
