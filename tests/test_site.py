"""The documentation site: pages are converted, searches find them, and every link leads somewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import pytest

from tests.helpers.reference import REPO

#: Sentences of other programs that the page quotes.
OTHERS = ("CUDA out of memory", "No space left on device", "needs ...: pip install")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", REPO / "docs" / "build_site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = _load()


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("docs/a.md", "[x](training.md#studies)", "[x](training.md#studies)"),
        ("docs/a.md", "![x](../assets/method.png)", "![x](assets/method.png)"),
        ("docs/a.md", "[x](../benchmarks/RESULTS.md)", "[x](measurements.md)"),
        ("CONTRIBUTING.md", "[x](docs/data.md)", "[x](data.md)"),
        ("docs/a.md", "[`names.py`](../tdmpc2/tracking/names.py)", "`names.py`"),
        ("docs/a.md", "[x](https://arxiv.org) [y](#z)", "[x](https://arxiv.org) [y](#z)"),
        ("docs/a.md", "`[x](data.md)` $ and ``[a](b)``", "`[x](data.md)` $ and ``[a](b)``"),
        ("docs/a.md", "```\ncost $a$ [x](../README.md)\n```", "```\ncost $a$ [x](../README.md)\n```"),
        ("docs/a.md", "<!-- api: tdmpc2.plan -->", "::: tdmpc2.plan\n    options:\n      members: false"),
        ("docs/a.md", "<!-- api: a.B c -->", "::: a.B\n    options:\n      members:\n        - c"),
    ],
)
def test_page_of_the_repository_becomes_a_page_of_the_site(source: str, text: str, expected: str) -> None:
    """Code stays as it is; a link to a file that is not on the site becomes its text."""
    assert site.for_site(source, text) == expected


def test_formulas_become_mathml_that_markdown_leaves_alone() -> None:
    pytest.importorskip("latex2mathml", reason="formulas need latex2mathml")
    inline = site.for_site("docs/a.md", "a $x_1 |y|$ b")
    assert re.fullmatch(r"a <math .*</math> b", inline)
    assert not set("|*_$") & set(inline)
    block = site.for_site("docs/a.md", "```math\n\\frac1H\n```")
    assert '<div class="formula"><math' in block
    assert "<mfrac>" in block
    with pytest.raises(ValueError, match="does not know"):
        site.for_site("docs/a.md", "$\\nosuchcommand x$")


def test_navigation_has_every_page_once() -> None:
    named = re.findall(r'= "(\w+\.md)"', site.navigation())
    assert sorted(named) == sorted({*site.sources().values(), "messages.md"} - {"readme.md"})


def test_messages_are_taken_from_the_code() -> None:
    code = (
        'if x:\n    raise ValueError(f"task={task} is not known. " + hint("a") + "Choose one")\nraise ValueError(text)'
    )
    assert list(site.messages(ast.parse(code))) == ["task=... is not known. ...Choose one"]


def test_messages_of_the_library_are_taken_from_its_sources() -> None:
    code = (
        'if (x) throw Refused("it ends in its header");\n  throw Refused(std::string("no \'") + key +\n "\' is known");'
    )
    assert list(site.native_messages(code)) == ["it ends in its header", "no '...' is known"]


def test_quoted_messages_are_those_of_the_program() -> None:
    """Users search for messages; one that was reworded must be reworded in the troubleshooting page, too."""
    page = (REPO / "docs" / "troubleshooting.md").read_text()
    quoted = [text for bold in re.findall(r"\*\*(.+?)\*\*", page, re.DOTALL) for text in re.findall(r'"([^"]+)"', bold)]
    assert len(quoted) > 40
    files = [*(REPO / "tdmpc2").rglob("*.py"), *(REPO / "examples").glob("*.py")]
    constants = [
        "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.JoinedStr, ast.Constant))
    ]
    said = "\n".join([*constants, (REPO / "Makefile").read_text()])
    missing = []
    for text in quoted:
        pieces = [piece.strip(" .,:=[]'") for piece in " ".join(text.split()).split("...")]
        missing += [text for piece in pieces if text not in OTHERS and piece not in said]
    assert not missing


class _Page(HTMLParser):
    """A parser that keeps what a page refers to, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []  # loaded without a click
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(values["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in values:
            self.fetched.append(values["src"])


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site."""
    for module in ("zensical", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module, reason="the site needs the packages of the extra 'docs'")
    build = tmp_path_factory.mktemp("repo") / "build" / "site"
    site.stage(build)
    for name in ("tdmpc2", "docs"):  # where mkdocstrings looks
        (build.parents[1] / name).symlink_to(REPO / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "zensical.toml"]
    done = subprocess.run(command, cwd=build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return build / "html"


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_fetched_from_elsewhere(html: Path) -> None:
    pages = {path: _Page(path.read_text()) for path in html.glob("*.html") if path.name != "404.html"}
    assert len(pages) > 25
    broken, remote = [], []
    for path, page in pages.items():
        remote += [(path.name, link) for link in page.fetched if re.match(r"(https?:)?//", link)]
        for link in page.links + page.fetched:
            if re.match(r"(https?:)?//|mailto:", link) or not link:
                continue
            file, anchor = urldefrag(unquote(link))
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append((path.name, link))
    assert not broken
    assert not remote


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("resume", "troubleshooting.html#continue-or-resume-a-run"),
        ("CUDA out of memory", "troubleshooting.html#memory-and-disk"),
        ("own environment", "own_environment.html"),
        ("act() was last called", "troubleshooting.html#acting-and-evaluating"),
        ("enable_wandb", "migration.html#keys"),
        ("load_agent precision", "api.html#tdmpc2.loading.load_agent"),
    ],
)
def test_search_finds_the_page(html: Path, query: str, page: str) -> None:
    """The search reads one file of texts, and a hit has all words of the query."""
    items = json.loads((html / "search.json").read_text())["items"]
    words = query.lower().split()
    texts = {item["location"]: f"{item['title']} {item['text']}".lower() for item in items}
    assert page in [place for place, text in texts.items() if all(word in text for word in words)]


@pytest.mark.slow
def test_api_page_has_signatures_and_readable_docstrings(html: Path) -> None:
    text = (html / "api.html").read_text()
    assert "Choose actions by planning, or with the policy prior." in text
    for name in ("load_agent", "make_env", "TDMPC2.act", "Player.act", "EpisodeStore.open", "read_study"):
        assert f'.{name}"' in text, name
    assert ":class:" not in text
    assert "::: tdmpc2" not in text
