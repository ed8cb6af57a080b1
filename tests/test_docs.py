"""The pages in docs/: their commands and keys exist, snippets run, links and citations lead somewhere."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import tdmpc2.commands
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config, key_names, parse_cfg
from tests.helpers.command_lines import accepted, command_of, script_of

REPO = Path(__file__).resolve().parent.parent
PAGES = sorted((REPO / "docs").glob("*.md"))
READMES = (REPO / "README.md", REPO / "models" / "README.md")
GROUPS = ("student_config", "teacher_config")
HYDRA = {
    "hydra/launcher", "hydra.launcher.tasks_per_node", "hydra.launcher.gpus_per_node", "hydra.launcher.n_jobs",
    "hydra.launcher.ray.init.num_cpus", "hydra.launcher.ray.remote.num_cpus",
}  # fmt: skip
#: Keys that another key needs: images are of one task, sharing bodies needs online mode, freezing needs a file.
NEEDED: dict[str, dict[str, str]] = {
    "freeze": {"checkpoint": "model.pt"},
    "reset": {"checkpoint": "model.pt"},
    "obs": {"task": "walker-walk"},
    "share_body": {"mode": "online"},
    "tasks": {"task": "mt80"},
}
#: Tasks and sets that a reader makes, in a file or with an example's package.
OWN_TASKS = {"my_set.yaml", "target-2", "targets"}
#: Keys of other programs that a page explains.
FOREIGN = {"migration.md": {"enable_wandb"}}
PYTHON = {
    path: path.read_text()
    for folder in ("tdmpc2", "tests", "benchmarks", "examples", ".")
    for path in (REPO.glob("*.py") if folder == "." else (REPO / folder).rglob("*.py"))
    if path != Path(__file__).resolve()
}


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)


def commands(page: Path) -> list[list[str]]:
    """Find the words of every command of this project in a page, without ``python`` and variables before it."""
    lines = "".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|tdmpc2) [^`]*)`", without_blocks(page))
    words = [shlex.split(line, comments=True) for line in lines]
    starts = [next((i for i, word in enumerate(line) if not re.match(r"[A-Z_]+=", word)), None) for line in words]
    found = [line[start:] for line, start in zip(words, starts, strict=True) if start is not None]
    return [line[line[0] == "python" :] for line in found if line[0] in ("python", "tdmpc2")]


def anchors(page: Path) -> set[str]:
    """List the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


COMMANDS = [(page, command) for page in (*PAGES, *READMES) for command in commands(page)]
#: Modules that still run as commands, under names that pages no longer teach.
FORMER = {"tdmpc2.checkpoint", "tdmpc2.checkpoints", "tdmpc2.data", "tdmpc2.data.targets", "tdmpc2.heldout"}


def test_commands_of_pages_are_found() -> None:
    """Finding commands at all keeps the tests below from passing without looking at any."""
    scripts = {command[0] for _, command in COMMANDS}
    assert scripts >= {"collect.py", "train.py", "evaluate.py", "quantize.py", "report.py", "tdmpc2", "-m"}
    assert len(commands(REPO / "README.md")) > 10
    named = {command[1] for _, command in COMMANDS if command[0] == "tdmpc2"}
    assert named >= {"checkpoint", "data", "doctor", "heldout", "targets"}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "")
def test_command_of_page_is_accepted(page: Path, command: list[str]) -> None:
    """A command is also refused here if it uses a name that is kept for older command lines only."""
    assert FORMER.isdisjoint(command)
    name, words = command_of(command)
    if name is None:
        assert script_of(command).is_file()
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert all(any(f'"{option}"' in text for text in PYTHON.values()) for option in options)
        return
    variants: list[dict[str, object]] = [{}]
    groups: dict[str, dict[str, object]] = {group: {} for group in GROUPS}
    for override in OverridesParser.create().parse_overrides(list(accepted(name, words))):
        group, _, key = override.key_or_group.rpartition(".")
        if override.key_or_group in HYDRA or key in GROUPS:
            continue
        if override.is_sweep_override():
            values = list(override.sweep_iterator())
            variants = [{**keys, key: value} for keys in variants for value in values]
        else:
            groups[group or GROUPS[0]][key] = override.value()
    for keys in variants:
        typed = {**groups[GROUPS[0]], **keys}
        if ":" in str(typed.get("task")) or typed.get("task") in OWN_TASKS:
            del typed["task"]
        parse_cfg({**{k: v for key in typed for k, v in NEEDED.get(key, {}).items()}, **typed})
    parse_cfg(groups[GROUPS[1]])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_in_the_text_of_page_exist(page: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", without_blocks(page))
    spans = [span for span in spans if not span.startswith(("python ", "tdmpc2 ", "#SBATCH", "make_env(", "torch."))]
    named = {match for span in spans for match in re.findall(r"(?:^|\s)(?:\w+_config\.)?([a-z_]+)=(?!=)", span)}
    named -= FOREIGN.get(page.name, set())
    assert named <= {*key_names(), *GROUPS, *option_names(), "mmap_mode", "t0", "eval_mode"}


def option_names() -> set[str]:
    """List the keys of the commands that compose no configuration."""
    modules = [import_module(f"tdmpc2.commands.{name}") for name in tdmpc2.commands.COMMANDS]
    return {option.key for module in modules for option in getattr(module, "OPTIONS", ())}


def test_code_that_pages_cite_exists() -> None:
    """Pages cite paths such as `tdmpc2/nn/math.py` and dotted names such as `tdmpc2.data.write_episodes`."""
    missing, seen = [], 0
    for page in (*PAGES, *READMES):
        spans = re.findall(r"`([^`]+)`", without_blocks(page))
        paths = {span for span in spans if re.fullmatch(r"(?:tdmpc2|benchmarks|examples|tests)/[\w/.]*", span)}
        paths |= {path for span in spans for path in re.findall(r"\bpython ((?:\w+/)*\w+\.py)\b", span)}
        missing += [(page.name, path) for path in sorted(paths) if not (REPO / path).exists()]
        names = {name for span in spans for name in re.findall(r"^(tdmpc2(?:\.\w+)+)(?:\(|$)", span)}
        missing += [(page.name, name) for name in sorted(names) if not is_importable(name)]
        seen += len(paths) + len(names)
    assert not missing
    assert seen > 15


def is_importable(name: str) -> bool:
    """Tell if a dotted name is a module or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(import_module(module), attribute) or import_module(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def test_index_has_one_line_for_every_page() -> None:
    linked = re.findall(r"^- \[[^]]+\]\((\w+\.md)\): ", (REPO / "docs" / "index.md").read_text(), re.MULTILINE)
    assert sorted(linked) == sorted({page.name for page in PAGES} - {"index.md"})


def test_snippet_of_checkpoints_page_plays_an_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Config(
        model_size=None, enc_dim=8, mlp_dim=8, latent_dim=8, task_dim=4, horizon=1, iterations=1, num_samples=4,
        num_elites=2, num_pi_trajs=1,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    TDMPC2(small).save("demo/student/model.pt")
    exec(compile(blocks(REPO / "docs" / "checkpoints.md", "python")[0], "checkpoints.md", "exec"), {})
    assert re.search(r"^return \d+\.\d$", capsys.readouterr().out, re.MULTILINE)


def test_headings_that_the_code_cites_exist() -> None:
    known = set(re.findall(r"^## (.+)$", (REPO / "docs" / "algorithm.md").read_text(), re.MULTILINE))
    missing = []
    for path, text in PYTHON.items():
        flat = re.sub(r"\s*\n\s*(?:#:? )?", " ", text)
        for citation in re.findall(r'docs/algorithm\.md[,:] ((?:"[^"]+"(?:, | and )?)+)', flat):
            missing += [(path.name, name) for name in re.findall(r'"([^"]+)"', citation) if name not in known]
    assert not missing


def test_tests_that_hold_departures_exist() -> None:
    """Every departure from the references names the tests that check it, so a renamed test is renamed there, too."""
    table = (REPO / "docs" / "algorithm.md").read_text().partition("## Departures")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    defined = set(re.findall(r"def (test_\w+)", "\n".join(PYTHON.values())))
    for row in rows:
        cited = re.findall(r"`(test_\w+)`", row)
        assert cited, row
        assert set(cited) <= defined, row
