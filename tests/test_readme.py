"""Commands of the README: the snippet runs, scripts, keys and values exist."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tdmpc2.config import key_names, parse_cfg
from tests.helpers.command_lines import accepted, command_of, script_of
from tests.helpers.reference import REPO

README = (REPO / "README.md").read_text()
GROUPS = ("student_config", "teacher_config")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands() -> list[list[str]]:
    """Words of every command that runs one of the scripts, without variables before it."""
    lines = "".join(blocks("")).replace("\\\n", " ").splitlines() + re.findall(r"`(python [^`]*)`", README)
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"([A-Z_]+=\S+ )*python ", line)]
    return [line[line.index("python") + 1 :] for line in words]


COMMANDS = commands()


def test_readme_snippet_plays_the_model_that_comes_with_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    found = re.fullmatch(r"return (\d+\.\d)\n", capsys.readouterr().out)
    assert found
    assert float(found[1]) > 500  # random actions return about 40


def test_readme_has_commands() -> None:
    """So that none of the tests below passes because it looks at nothing."""
    assert {line[0] for line in COMMANDS} >= {"collect.py", "train.py", "evaluate.py", "quantize.py"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:60])
def test_readme_command_is_valid(command: list[str]) -> None:
    name, words = command_of(command)
    if name is None:
        script = script_of(command)
        options = {word for word in words if word.startswith("-")}
        assert all(f'"{option}"' in script.read_text() for option in options)
        return
    for override in OverridesParser.create().parse_overrides(list(accepted(name, words))):
        key = override.key_or_group.removeprefix(f"{GROUPS[0]}.").removeprefix(f"{GROUPS[1]}.")
        if key not in (*GROUPS, "task") and not key.startswith(
            "hydra"
        ):  # a task of one's own needs the reader's module
            values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
            assert all(parse_cfg({key: value}) for value in values)


def test_readme_keys_exist() -> None:
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE))
    named = [match for span in spans for match in re.findall(r"(?:^|\s)(?:\w+_config\.)?([a-z_]+)=(?!=)", span)]
    assert len(named) > 5
    assert set(named) <= {*key_names(), *GROUPS, "mmap_mode", "key"}
    prefixed = [match for span in spans for match in re.findall(r"(?:student|teacher)_config\.(\w+)", span)]
    assert set(prefixed) <= set(key_names())


def test_readme_make_targets_exist() -> None:
    targets = re.findall(r"^make ([\w-]+)", "".join(blocks("")), re.MULTILINE)
    assert targets
    assert all(re.search(rf"^{target}:", (REPO / "Makefile").read_text(), re.MULTILINE) for target in targets)


def test_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 150


def test_parts_of_the_package_that_are_named_exist() -> None:
    paragraph = README[README.index("Where things are:") :].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", paragraph))
    assert len(named) > 10
    there = {path.stem for path in (REPO / "tdmpc2").iterdir()}
    assert named <= there
