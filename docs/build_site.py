"""Build the documentation site: ``python docs/build_site.py build``, or ``serve`` to read it at http://localhost:8000.

The pages in docs/ are plain Markdown that a code host shows as it is. For the site they are copied to build/site/pages,
together with those of the root, and there

- links to pages go where these are on the site, and links to other files of the repository become plain text;
- formulas become MathML, which browsers draw without a script;
- a comment ``<!-- api: tdmpc2.planner.plan -->`` becomes the documentation of that name, from its docstring;
- one page more lists every message with which the program refuses something;
- the navigation is what docs/index.md lists.
"""

from __future__ import annotations

import ast
import html
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
BUILD = REPO / "build" / "site"
#: Pages that are not in docs/, and their names on the site.
OTHERS = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "readme.md",
    "benchmarks/RESULTS.md": "measurements.md",
    "models/README.md": "models.md",
}
_MESSAGES = "messages.md"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_LISTED = re.compile(r"^- \[([^]]+)\]\(([^)]+)\):", re.MULTILINE)
_CODE = re.compile(r"^( *)```.*?^\1```[^\S\n]*$|``.+?``|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^( *)```math\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<![\w$\\])\$(?=[^\s$])([^$]+?)(?<=[^\s$])\$(?![\w$])")
_REFUSED = re.compile(r"throw Refused\((.+?)\);", re.DOTALL)
_DIRECTIVE = re.compile(r"^<!-- api: (\S+?)((?: \w+)*) -->$", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Copy the pages together and run Zensical; returns its exit code."""
    if arguments not in (["build"], ["serve"]):
        print(__doc__)
        return 2
    stage(BUILD)
    # Strict: a broken link, a missing page or a name that mkdocstrings does not find ends the build.
    command = [sys.executable, "-m", "zensical", arguments[0], "--strict", "-f", "zensical.toml"]
    return subprocess.run(command, cwd=BUILD, check=False).returncode


def stage(build: Path) -> None:
    """Write the pages and the configuration of the site."""
    shutil.rmtree(build, ignore_errors=True)
    pages = build / "pages"
    pages.mkdir(parents=True)
    for source, name in sources().items():
        text = for_site(source, (REPO / source).read_text(encoding="utf-8"))
        (pages / name).write_text(text, encoding="utf-8")
    (pages / _MESSAGES).write_text(messages_page(), encoding="utf-8")
    shutil.copytree(REPO / "assets", pages / "assets")
    shutil.copy(REPO / "docs" / "site.css", pages)
    shutil.copy(REPO / "docs" / "roles.py", build)
    config = (REPO / "zensical.toml").read_text(encoding="utf-8")
    config = config.replace("[project]\n", f"[project]\nnav = {navigation()}\n", 1)
    (build / "zensical.toml").write_text(config, encoding="utf-8")


def sources() -> dict[str, str]:
    """Every page's path in the repository, and its name on the site."""
    return {f"docs/{path.name}": path.name for path in sorted((REPO / "docs").glob("*.md"))} | OTHERS


def navigation() -> str:
    """The pages in the order of docs/index.md, by its headings, as TOML."""
    index = (REPO / "docs" / "index.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.+)$", index, flags=re.MULTILINE)
    groups = ['{ "Home" = "index.md" }']
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        pages = [f'{{ "{title}" = "{target(posixpath.join("docs", path))}" }}' for title, path in _LISTED.findall(text)]
        if heading == "Help":
            pages.insert(1, f'{{ "Every message" = "{_MESSAGES}" }}')
        groups.append(f'{{ "{heading}" = [{", ".join(pages)}] }}')
    return f"[{', '.join(groups)}]"


def target(path: str) -> str | None:
    """Where a file of the repository is on the site; None: nowhere."""
    path = posixpath.normpath(path)
    return path if path.startswith("assets/") else sources().get(path)


def for_site(source: str, text: str) -> str:
    """Rewrite one page: its formulas, its links, and what it takes from docstrings."""
    text = _BLOCK.sub(lambda found: f'\n{found[1]}<div class="formula">{_mathml(found[2], "block")}</div>\n', text)
    text = _outside_code(_INLINE, lambda found: _mathml(found[1], "inline"), text)
    text = _outside_code(_LINK, lambda found: _link(source, found), text)
    return _DIRECTIVE.sub(_api, text)


def messages_page() -> str:
    """List the messages of all errors that the code raises, by module; ``...`` stands for what differs."""
    parts = [
        "# Every message",
        "",
        "What this program says when it refuses something; `...` stands for names and values.",
    ]
    for path in sorted((REPO / "tdmpc2").rglob("*.py")):
        said = dict.fromkeys(messages(ast.parse(path.read_text(encoding="utf-8"))))
        if said:
            parts += ["", f"## {path.relative_to(REPO).as_posix()}", ""]
            parts += [f"- `` {text} ``" for text in said]
    for path in sorted((REPO / "tdmpc2" / "native").glob("*.cpp")):
        if said := dict.fromkeys(native_messages(path.read_text(encoding="utf-8"))):
            parts += ["", f"## {path.relative_to(REPO).as_posix()}", ""]
            parts += [f"- `` {text} ``" for text in said]
    return "\n".join(parts) + "\n"


def messages(tree: ast.AST) -> Iterator[str]:
    """Yield the messages that are raised in a module, without those that are nothing but a value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = " ".join(_text(node.exc.args[0]).split())
            if len(re.findall(r"[a-z]{2,}", text)) > 2:
                yield text


def native_messages(code: str) -> Iterator[str]:
    """Yield the messages with which a C++ source of the library refuses something."""
    for found in _REFUSED.finditer(code):
        pieces = re.findall(r'"((?:[^"\\]|\\.)*)"|([^"]+)', found[1].replace("std::string(", ""))
        text = "".join(literal or ("..." if re.search(r"\w", other) else "") for literal, other in pieces)
        if len(re.findall(r"[a-z]{2,}", text)) > 2:
            yield " ".join(text.split())


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "..."


def _outside_code(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    """Replace what does not begin within code."""
    code = [found.span() for found in _CODE.finditer(text)]

    def checked(found: re.Match[str]) -> str:
        inside = any(start <= found.start() < end for start, end in code)
        return found[0] if inside else replace(found)

    return pattern.sub(checked, text)


def _link(source: str, found: re.Match[str]) -> str:
    image, label, link = found.groups()
    if re.match(r"[a-z]+:|#", link):
        return found[0]
    path, hash_, anchor = link.partition("#")
    place = target(posixpath.join(posixpath.dirname(source), path))
    return f"{image}[{label}]({place}{hash_}{anchor})" if place else label


def _mathml(formula: str, display: str) -> str:
    from latex2mathml.converter import convert

    text = convert(formula, display=display)
    if "\\" in html.unescape(text):
        raise ValueError(f"docs: the formula {formula!r} has a command that latex2mathml does not know")
    for sign in "|*_":  # which Markdown would take for its own
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def _api(found: re.Match[str]) -> str:
    name, members = found[1], found[2].split()
    listed = "".join(f"\n        - {member}" for member in members)
    return f"::: {name}\n    options:\n      members:{listed or ' false'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
