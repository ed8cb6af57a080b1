"""Bad input ends a command with one line and exit code 2, and a call of the API with a ValueError."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2 import Config, load_agent, make_env, parse_cfg
from tdmpc2.commands import main
from tdmpc2.commands.overrides import read_line
from tdmpc2.data.episodes import write_episodes
from tdmpc2.envs import task_spec
from tdmpc2.quantization.command import overrides_of
from tdmpc2.support.cli import one_line_errors

GROUPS = ("student_config", "teacher_config")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TDMPC2_TRACEBACK", raising=False)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.count("\n") == 1, said
    assert said.startswith("error: ")
    assert not list(Path.cwd().iterdir())
    return said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("quantize x.pt --limit nan", "limit=nan must be a finite number"),
        ("quantize x.pt --limit 1e400", "limit=1e400 must be a finite number"),
        ("quantize x.pt --set exp_name=${foo", "exp_name=${foo cannot be read"),
        ("quantize x.pt num_samples=[1", "a bracket is not closed"),
        ("targets d t.pt --batch-rows 0", "batch_rows=0 must be at least 1"),
        ("targets d t.pt --batch-rows -5", "batch_rows=-5 must be at least 1"),
        ("heldout x.pt data=d batch_size=1e11", "batch_size=1e11 must be a whole number"),
        ("data inspect dir=", "dir needs a value"),
        ("report paths=", "paths needs a value"),
        ("checkpoint inspect file=", "file needs a value"),
        ("checkpoint convert x.pt layout=a out=", "out needs a value"),
        ("nonsense", "'nonsense' is not a command"),
    ],
)
def test_command_refuses_odd_options_in_one_line(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(line.split(), capsys)


@pytest.mark.parametrize("command", ["quantize", "report", "data", "checkpoint"])
def test_command_with_an_empty_word_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = {"data": "inspect", "checkpoint": "inspect"}
    assert "needs a value" in refused([command, *filter(None, [verbs.get(command)]), ""], capsys)


@pytest.mark.parametrize(
    "line", ["teacher_config=null teacher_config.checkpoint=x", "~teacher_config teacher_config.lr=1"]
)
def test_teacher_that_is_absent_takes_no_keys(line: str) -> None:
    """The message used to be four lines of a library about appending."""
    with pytest.raises(ValueError, match=r"teacher_config\.\w+=\w+ beside teacher_config=null"):
        read_line(line.split(), GROUPS)


def test_override_that_no_grammar_takes_is_named() -> None:
    with pytest.raises(ValueError, match=r"exp_name=\$\{foo cannot be read"):
        overrides_of({"exp_name": "${foo"})


@pytest.mark.parametrize("key", ["checkpoint", "data_dir", "work_dir", "compare"])
@pytest.mark.parametrize("value", ["", "  ", "a\0b"])
def test_empty_path_is_refused(key: str, value: str) -> None:
    """`collect data_dir=` used to write its files into the working directory."""
    with pytest.raises(ValueError, match=f"{key}=.* names no file or directory"):
        parse_cfg({key: value})


# -- calls of the API -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_env(None),  # type: ignore[arg-type]
        lambda: make_env(7),  # type: ignore[arg-type]
        lambda: make_env("os:x-v0"),
        lambda: make_env("a:b:c"),
        lambda: make_env("walker-walk", seed=1.5),  # type: ignore[arg-type]
        lambda: Config(foo=1),  # type: ignore[call-arg]
        lambda: Config(lrr=1),  # type: ignore[call-arg]
        lambda: Config(seed="x"),  # type: ignore[arg-type]
        lambda: Config(lr=10**400),
        lambda: Config(batch_size=None),  # type: ignore[arg-type]
        lambda: parse_cfg(None),  # type: ignore[arg-type]
        lambda: parse_cfg([1]),  # type: ignore[arg-type]
        lambda: parse_cfg({"foo": 1}),
        lambda: task_spec(np.ones(3)),  # type: ignore[arg-type]
        lambda: write_episodes("d", None, []),  # type: ignore[arg-type]
        lambda: write_episodes("d", np.ones(3), []),  # type: ignore[arg-type]
        lambda: write_episodes("d", "walker-walk", [], task_set=5),  # type: ignore[arg-type]
        lambda: write_episodes("d", "walker-walk", torch.ones(())),  # type: ignore[arg-type]
        lambda: write_episodes("d", "walker-walk", 5),  # type: ignore[arg-type]
        lambda: write_episodes("d", "walker-walk", [5], terminated=torch.ones(())),  # type: ignore[arg-type]
        lambda: write_episodes("d", "walker-walk", [5], terminated=[np.ones(3)]),  # type: ignore[list-item]
        lambda: write_episodes("d", "walker-walk", [5], terminated=[float("nan")]),  # type: ignore[list-item]
        lambda: load_agent(None),  # type: ignore[arg-type]
        lambda: load_agent(5),  # type: ignore[arg-type]
        lambda: load_agent({}),
    ],
)
def test_call_with_what_cannot_be_is_a_value_error(call: Callable[[], object]) -> None:
    """These calls used to raise TypeErrors and AttributeErrors from deep inside."""
    with pytest.raises((ValueError, ModuleNotFoundError)) as error:
        call()
    assert len(str(error.value)) > 10
    assert "\n" not in str(error.value)


def test_unknown_key_of_a_configuration_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Unknown key 'lrr' in Config.* Did you mean 'lr'"):
        Config(lrr=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(("key", "value"), [("seed", np.int64(3)), ("lr", np.float32(0.5)), ("mpc", np.bool_(False))])
def test_numpy_numbers_are_numbers(key: str, value: Any) -> None:
    found = getattr(Config(**{key: value}), key)
    assert found == value
    assert type(found) in (int, float, bool)


# -- ends -------------------------------------------------------------------------------------------------------------


def ended(function: Callable[[], None]) -> int | str | None:
    with pytest.raises(SystemExit) as leaving:
        one_line_errors(function)()
    return leaving.value.code


def test_error_with_commands_for_a_terminal_shows_them_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError("task 'x\x1b]0;owned\x07\nerror: not ours'")

    assert ended(fails) == 2
    assert capsys.readouterr().err == "error: task 'x\\x1b]0;owned\\x07\\nerror: not ours'\n"


class FullOutput(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_output_on_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`checkpoint inspect x.pt > /dev/full` used to end in a traceback."""
    monkeypatch.setattr(sys, "stdout", FullOutput())
    assert ended(lambda: print("x")) == 2
    assert capsys.readouterr().err == (
        "error: Standard output could not be written: No space left on device. Make room, or write it elsewhere\n"
    )


def test_error_whose_standard_error_is_closed_keeps_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    def fails() -> None:
        raise ValueError("x")

    monkeypatch.setattr(sys, "stderr", Closed())
    assert ended(fails) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.\n more"
        ),
        RuntimeError("Storage size calculation overflowed with sizes=[9]"),
    ],
)
def test_allocation_that_fails_is_one_line_about_memory(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def fails() -> None:
        raise error

    assert ended(fails) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: There is not enough memory for this")
    assert said.count("\n") == 1


LONG = "walker " * 2000


@pytest.mark.parametrize(
    "keys",
    [
        {"distillation_targets": [LONG]},
        {"distillation_targets": [LONG.replace(" ", "")]},
        {"freeze": [LONG], "checkpoint": "x.pt"},
        {"mix": LONG},
        {"mix": [LONG]},
        {"mix": {LONG: 5}},
        {"mix": [{LONG: 5}]},
        {"mix": [{"share": 0.5, "kind": LONG}]},
        {"teachers": {LONG: 5}},
    ],
)
def test_endless_text_is_cut_where_it_is_named(keys: dict[str, Any]) -> None:
    """An endless text in a checkpoint's configuration used to fill the terminal."""
    with pytest.raises(ValueError, match="walker") as error:
        parse_cfg({**keys, "mode": "online"} if "freeze" in keys else keys)
    assert len(str(error.value)) < 1500


def test_error_whose_line_has_no_end_is_cut_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError(f"begin {LONG} remedy\n  and a second line")

    assert ended(fails) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert len(first) < 1300
    assert first.startswith("error: begin walker")
    assert first.endswith("walker  remedy")
    assert second == "  and a second line"


def test_fault_of_the_program_keeps_its_traceback() -> None:
    def fails() -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError):
        one_line_errors(fails)()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_inspect_of_a_pipe_is_refused_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path.parent / f"{tmp_path.name}.pipe")
    assert "named pipe" in refused(["checkpoint", "inspect", str(pipe)], capsys)
