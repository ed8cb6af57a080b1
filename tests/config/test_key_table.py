"""The table of keys: one line adds a key to the configuration, the help and the reference page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import make_dataclass
from pathlib import Path

import pytest

from tdmpc2.config import (
    CHANGEABLE,
    COMMANDS,
    KEYS,
    ONE_START_KEYS,
    PLANNER_KEYS,
    RUN_KEYS,
    UNDECISIVE,
    WIDTHS,
    Config,
    defaults,
    help_rows,
)
from tdmpc2.config.__main__ import main
from tdmpc2.config.facts import Key, key, key_table
from tdmpc2.config.reference import markdown
from tdmpc2.config.sizes import MODEL_SIZES

REPO = Path(__file__).resolve().parents[2]


def run_python(code: str, root: Path) -> str:
    """Return the standard output of a Python program that imports the package from ``root``."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def declared(**facts: float) -> Key:
    """Declare a key in a table of its own."""
    return key_table(make_dataclass("Table", [("rate", float, key(1.0, "a rate", section="Toys", **facts))]))["rate"]  # type: ignore[arg-type]


TOY = """
    toy_rate: float = key(
        0.5, "a toy", at_least=0, at_most=1, scope=RUN, on_resume=MAY_CHANGE, commands=("train", "collect")
    )
"""
READ_TOY = """
import json
from tdmpc2.config import RUN_KEYS, UNDECISIVE, Config, check_keys, defaults, help_rows, key_names
from tdmpc2.config.reference import markdown
from tdmpc2.training import run_record
check_keys(["toy_rate"], "the command line")
def refusal():
    try:
        Config(toy_rate=2)
    except ValueError as error:
        return str(error)
print(json.dumps({
    "is a key": "toy_rate" in key_names(), "default": defaults()["toy_rate"], "value": Config(toy_rate="1e-1").toy_rate,
    "refusal": refusal(), "scope": "toy_rate" in RUN_KEYS, "may change": "toy_rate" in run_record.CHANGEABLE,
    "reports": "toy_rate" not in UNDECISIVE, "page": "`toy_rate` | 0.5 | between 0 and 1 | a toy" in markdown(),
    "help": [command for command in ("train", "evaluate", "collect")
             if ("toy_rate", "0.5", "between 0 and 1", "a toy", "Task") in help_rows(command)],
}))
"""


def test_one_more_line_adds_a_key_everywhere(tmp_path: Path) -> None:
    """A copy of the package gets one more declaration and no other change."""
    shutil.copytree(REPO / "tdmpc2", tmp_path / "tdmpc2", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "tdmpc2" / "config" / "keys.py"
    text = table.read_text()
    before = "    mode: str = key("
    assert text.count(before) == 1
    table.write_text(text.replace(before, TOY.lstrip("\n") + before))
    assert json.loads(run_python(READ_TOY, tmp_path)) == {
        "is a key": True,
        "default": 0.5,
        "value": 0.1,
        "refusal": "toy_rate=2.0 must be between 0 and 1",
        "scope": True,
        "may change": True,
        "reports": False,
        "page": True,
        "help": ["train", "collect"],
    }


def test_listing_the_keys_does_not_load_torch() -> None:
    code = "import sys, tdmpc2.config; tdmpc2.config.help_rows('train'); print('torch' in sys.modules)"
    assert run_python(code, REPO) == "False\n"


def test_tables_hold_the_keys_that_say_so() -> None:
    assert {"checkpoint", "seed", "num_threads", "buffer_size"} <= RUN_KEYS
    assert not RUN_KEYS & {"task", "lr", "num_samples", "enc_dim"}
    assert {"steps", "num_samples", "data_dir"} <= CHANGEABLE
    assert not CHANGEABLE & {"seed", "batch_size", "checkpoint", "task", "tasks", "horizon", "lr"}
    assert {"resume", "dry_run", "planner"} == ONE_START_KEYS
    assert {"seed", "log_freq", "device", "data_dir"} <= UNDECISIVE
    assert not UNDECISIVE & {"lr", "steps", "precision", "eval_seed", "task_balance", "checkpoint"}
    assert set(WIDTHS) == {"task_dim", *MODEL_SIZES[1]}
    assert PLANNER_KEYS == (
        "iterations", "num_samples", "num_elites", "num_pi_trajs", "horizon", "min_std", "max_std",
        "plan_action", "plan_start", "temperature",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "words", "allowed", "refused"),
    [
        ({"at_least": 1}, "at least 1", 1, 0.9),
        ({"above": 0}, "above 0", 1e-9, 0),
        ({"at_most": 3}, "at most 3", 3, 3.1),
        ({"at_least": 0, "at_most": 2**31 - 1}, "between 0 and 2147483647", 2**31 - 1, 2**31),
        ({"above": 0, "at_most": 1}, "above 0, at most 1", 1, 0),
    ],
)
def test_limits_are_said_and_kept(facts: dict[str, float], words: str, allowed: float, refused: float) -> None:
    one = declared(**facts)
    assert one.limits == words
    assert one.allows(allowed)
    assert not one.allows(refused)


def test_a_section_lasts_until_the_next_one() -> None:
    sections = [row.section for row in help_rows()]
    assert sections == sorted(sections, key=list(dict.fromkeys(sections)).index)
    assert KEYS["seed"].section == "Task"
    assert KEYS["exp_name"].section == "Files"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_rows_are_complete_and_of_the_command(command: str) -> None:
    rows = help_rows(command)
    assert all(all(row) for row in rows)
    assert {row.key for row in rows} == {name for name, key in KEYS.items() if command in key.commands}


def test_help_of_a_command_leaves_out_what_does_not_matter_to_it() -> None:
    assert not {"steps", "lr", "wandb_project"} & {row.key for row in help_rows("evaluate")}
    assert {"eval_episodes", "num_samples", "compare"} <= {row.key for row in help_rows("evaluate")}
    with pytest.raises(ValueError, match=r"'evalute' is not one of .* Did you mean 'evaluate'"):
        help_rows("evalute")


def test_every_key_is_explained_in_one_line() -> None:
    assert all(key.explanation and "\n" not in key.explanation for key in KEYS.values())


def test_every_default_is_allowed() -> None:
    assert Config(**defaults()) == Config()


def test_reference_page_is_up_to_date() -> None:
    """Write the page again if this fails: python -m tdmpc2.config --write docs/configuration.md."""
    assert (REPO / "docs" / "configuration.md").read_text() == markdown()


def test_command_writes_the_page_and_lists_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--write", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text() == markdown()
    main(["collect"])
    printed = capsys.readouterr().out
    assert "episodes_per_task" in printed
    assert "wandb_project" not in printed
