"""Command lines as overrides for Hydra: keys, quoting, flags."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tdmpc2.commands.hydra_app import App, _note_unread, load_keys
from tdmpc2.commands.overrides import parse, read_line
from tdmpc2.config import Config

GROUPS = ("student_config", "teacher_config")


def overrides(*words: str, groups: tuple[str, ...] = (), bare: str | None = "checkpoint") -> list[str]:
    return list(read_line(words, groups, bare).overrides)


def test_key_without_a_name_is_the_students() -> None:
    typed = ["steps=100", "--task", "walker-walk", "student_config.seed=2", "teacher_config.checkpoint=t.pt"]
    assert overrides(*typed, groups=GROUPS) == [
        "student_config.steps=100",
        "student_config.task=walker-walk",
        "student_config.seed=2",
        "teacher_config.checkpoint=t.pt",
    ]


@pytest.mark.parametrize("value", ["null", "none"])
def test_none_is_null(value: str) -> None:
    assert overrides(f"teacher_config={value}", groups=GROUPS) == ["teacher_config=null"]
    assert overrides(f"compare={value}") == ["compare=null"]


def test_value_without_a_key_is_the_checkpoint() -> None:
    """`evaluate.py some/file.pt` used to be refused as "mismatched input" by Hydra's grammar."""
    assert overrides("some/file.pt", "mpc=false") == ["checkpoint=some/file.pt", "mpc=false"]


@pytest.mark.parametrize("words", [("a.pt", "b.pt"), ("a.pt", "checkpoint=b.pt")])
def test_second_file_is_refused(words: tuple[str, str]) -> None:
    """Hydra takes the last one: `evaluate.py a.pt b.pt` scored b.pt alone, without a word."""
    with pytest.raises(ValueError, match=r"b.pt is one file too many beside a.pt: --multirun checkpoint=a.pt,b.pt"):
        overrides(*words)


def test_value_without_a_key_is_refused_where_it_could_be_two() -> None:
    with pytest.raises(ValueError, match=r"'x.pt' is not of the form key=value: write checkpoint=x.pt, for example"):
        overrides("x.pt", groups=GROUPS, bare=None)


@pytest.mark.parametrize(
    "path", ["a(1).pt", "a=b.pt", "with space=1.pt", "ü.pt", "[x].pt", "a'b.pt", "a'b\".pt", "C:\\a(1)\\b.pt", "#1\\"]
)
def test_path_is_quoted_where_hydra_needs_it(path: str) -> None:
    (override,) = parse(overrides(f"checkpoint={path}")) if path[0] != "[" else parse(overrides(f"exp_name=x{path}"))
    assert override.value() == (path if path[0] != "[" else f"x{path}")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="$[{~,"), min_size=1))
def test_text_arrives_as_it_was_typed(text: str) -> None:
    """A value keeps every character; lists, interpolations, sweeps and null are excluded, since they mean more."""
    (override,) = parse(overrides(f"exp_name={text}"))
    if text.strip().lower() in ("null", "none") or text[0] in "'\"":
        return
    value = override.value()
    assert str(value).lower() == text.strip().lower() if isinstance(value, bool) else value in (text, text.strip())


@pytest.mark.parametrize("name", ["007", "1e5", "2024"])
def test_name_that_looks_like_a_number_stays_a_name(name: str) -> None:
    (override,) = parse(overrides(f"exp_name={name}"))
    assert override.value() == name


@pytest.mark.parametrize("typed", ["tasks=[a,b]", "tasks=a,b", "--tasks a b", "--tasks a,b", "tasks=[a, b]"])
def test_list_may_be_written_in_many_ways(typed: str) -> None:
    (override,) = parse(overrides(*typed.split()))
    assert override.value() == ["a", "b"]


def test_comma_is_a_sweep_in_a_multirun() -> None:
    line = read_line(["--multirun", "seed=1,2", "data_dir=a,b"], GROUPS)
    assert line.flags == ["--multirun"]
    assert line.overrides == ["student_config.seed=1,2", "student_config.data_dir=a,b"]
    assert all(override.is_sweep_override() for override in parse(line.overrides))


def test_comma_without_multirun_says_what_to_add() -> None:
    with pytest.raises(ValueError, match=r"lr=1,2 names several values: add --multirun for one run of each"):
        overrides("lr=1,2")


def test_existing_file_with_a_comma_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a,b.pt"
    path.touch()
    (override,) = parse(overrides(f"checkpoint={path}"))
    assert override.value() == str(path)


def test_flags_of_hydra_may_stand_anywhere() -> None:
    """Hydra itself accepts overrides only in one uninterrupted row."""
    line = read_line(["steps=1", "--cfg", "job", "seed=2", "-m", "--info"])
    assert (line.flags, line.overrides) == (["--cfg", "job", "-m", "--info"], ["steps=1", "seed=2"])


def test_settings_of_hydra_pass() -> None:
    typed = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=1"]
    assert overrides(*typed, groups=GROUPS) == typed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stepz=1"], "Unknown key 'stepz' .*Did you mean 'steps'"),
        (["--stepz", "1"], "Unknown key 'stepz' .*Did you mean 'steps'"),
        (["student_config.stepz=1"], "'stepz' in student_config on the command line. Did you mean 'steps'"),
        (["techer_config=null"], "Unknown key 'techer_config' .*Did you mean 'teacher_config'"),
        (["+new=1"], "Unknown key 'new'"),
        (["--steps"], "steps needs a value"),
        (["-x"], "Unknown option -x"),
        (["--cfg", "jub"], "invalid choice: 'jub'"),
        (["tasks=[a]]"], "tasks=.*brackets do not match"),
        (["tasks=[a,b"], "a bracket is not closed"),
        (["teachers={a: x, a: y}"], "teachers={a: x, a: y}: 'a' is there twice: leave out one"),
        (["mix=[{share: 1, kind: random, share: 2}]"], "'share' is there twice"),
        (["tasks=[a=b,c]"], "cannot be read: put texts with = .* in single quotes"),
    ],
)
def test_mistake_is_said_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_line(words, GROUPS)
    assert "\n" not in str(caught.value)


def test_planner_of_a_configuration_file_beside_a_checkpoint_is_named_as_unused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file's num_samples was left aside without a word, and its eval_episodes counted."""
    logger = logging.getLogger("tdmpc2")
    logger.addHandler(caplog.handler)
    try:
        changed = {"checkpoint": "x.pt", "num_samples": 64, "eval_episodes": 3, "exp_name": "x"}
        follow = {"num_elites": None, "num_pi_trajs": None}
        cfg = OmegaConf.create({**Config().to_dict(), **follow, **changed})
        keys = load_keys(cfg)
    finally:
        logger.removeHandler(caplog.handler)
    said = caplog.messages[0]
    assert said.startswith("num_samples=64 of the configuration files: not used, since a checkpoint says how it plays")
    assert "num_samples" not in keys
    assert keys["eval_episodes"] == 3


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("evaluate", ["x.pt", "dry_run=true", "steps=100"], ["dry_run, steps: evaluate does not read them"]),
        ("train", ["compare=x.pt", "student_config.batch_size=8"], ["compare: train does not read it"]),
        ("evaluate", ["x.pt", "eval_episodes=3", "num_samples=64", "hydra.mode=MULTIRUN"], []),
        ("collect", ["x.pt", "data_dir=data", "mix=[]"], []),
    ],
)
def test_key_of_another_command_is_named_as_unread(
    caplog: pytest.LogCaptureFixture, command: str, words: list[str], said: list[str]
) -> None:
    """A dry run that evaluate does not know was an evaluation, without a word."""
    groups, bare = (GROUPS, None) if command == "train" else ((), "checkpoint")
    logger = logging.getLogger("tdmpc2")
    logger.addHandler(caplog.handler)
    try:
        _note_unread(
            App(command, "", "generic", groups=tuple(groups), bare=bare), read_line(words, groups, bare).overrides
        )
    finally:
        logger.removeHandler(caplog.handler)
    assert list(dict.fromkeys(caplog.messages)) == said  # where it propagates, caplog has it twice
