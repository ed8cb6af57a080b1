"""Help pages and the list of commands."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tdmpc2 import commands
from tdmpc2.commands import COMMANDS, main
from tdmpc2.config import help_rows
from tests.helpers.command_lines import accepted
from tests.helpers.commands import start
from tests.helpers.forks import environment
from tests.helpers.reference import REPO

_HEAVY = """
import sys
from importlib import import_module
import tdmpc2.commands
for name in tdmpc2.commands.COMMANDS:
    module = import_module(f"tdmpc2.commands.{name}")
    try:
        module.main(["--help"])
    except SystemExit as ended:
        assert ended.code == 0, name
print("loaded:", *sorted({"torch", "mujoco", "tensordict", "wandb", "matplotlib", "scipy"} & set(sys.modules)))
"""


def page_of(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([name, *words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_of_every_command_loads_nothing_slow() -> None:
    """`--help` used to take 4 to 8 seconds, mostly for importing PyTorch."""
    child = subprocess.run([sys.executable, "-c", _HEAVY], env=environment(), capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_purpose_and_three_examples_that_are_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(name, capsys)
    doc = import_module(f"tdmpc2.commands.{name}").__doc__
    assert " ".join(page.split("\n\n")[0].split()) == " ".join(doc.split("\n\n")[0].split())
    examples = [
        line.partition(" # ")[0].split()[1:] for line in page.splitlines() if line.startswith(f"  tdmpc2 {name}")
    ]
    assert len(examples) >= (2 if name == "doctor" else 3)
    for _, *words in examples:
        accepted(name, [word.strip('"') for word in words] if not any('"' in word for word in words) else [])


@pytest.mark.parametrize("name", ["train", "evaluate", "collect"])
def test_help_explains_the_keys_that_matter_and_no_others(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--help` used to print 170 lines of keys without explaining any of them."""
    monkeypatch.setenv("COLUMNS", "110")
    page = page_of(name, capsys)
    text = " ".join(page.split())
    shown = [line.split()[0] for line in page.splitlines() if line.startswith("  ") and line[2].isalpha()]
    rows = help_rows(name)
    assert [key for key in shown if key != "tdmpc2"] == [row.key for row in rows]
    for row in rows:
        assert " ".join(row.explanation.split()) in text
        assert f"(default: {row.default})" in text
    assert ("batch_size" in shown) == (name == "train")


def test_help_of_a_script_shows_the_script(tmp_path: Path) -> None:
    outcome = start("train.py --help", tmp_path)
    assert outcome.code == 0
    assert "  python train.py teacher_config=null steps=1000" in outcome.out
    assert "tdmpc2 train " not in outcome.out


def test_help_of_one_verb_shows_its_options_only(capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of("data", capsys, "verify")
    assert "tdmpc2 data verify data/mt30" in page
    assert "episodes_per_file" not in page


def test_help_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for line in page_of("train", capsys).splitlines() if not line.startswith("  tdmpc2 ")]
    assert max(map(len, lines)) <= 80


def test_every_module_of_a_command_is_in_the_table() -> None:
    folder = Path(commands.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text()} - {"__init__"}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_overview_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'trian' is not a command of tdmpc2")
    assert error.endswith("Did you mean 'train'?\n")


def test_module_is_the_command() -> None:
    child = subprocess.run([sys.executable, "-m", "tdmpc2", "--version"], env=environment(), capture_output=True)
    assert child.stdout.decode().startswith("tdmpc2 ")


@pytest.mark.parametrize("name", ["train", "evaluate", "collect", "quantize", "report"])
def test_script_of_a_command_is_short(name: str) -> None:
    assert len((REPO / f"{name}.py").read_text().splitlines()) <= 30


def test_help_of_the_demo_starts_nothing(tmp_path: Path) -> None:
    """`--help` used to run the whole demo, whose folder then blocked the next run."""
    outcome = start("examples/demo.py --help", tmp_path)
    assert outcome.code == 0
    assert "make demo" in outcome.out
    assert not list(tmp_path.iterdir())
