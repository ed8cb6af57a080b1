"""Completion by the tab key, asked for as shells do; Hydra's own words for it used to be refused as keys."""

from __future__ import annotations

import sys

import pytest

from tdmpc2.commands import main
from tdmpc2.commands.completion import last_command


def answers(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["tdmpc2"])
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    main(["-sc", "query=bash"])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tdmpc2 tr", ["train"]),
        ("tdmpc2 he", ["heldout"]),
        ("tdmpc2 train ste", ["steps="]),
        ("tdmpc2 train --multirun steps=3 batch_s", ["batch_size="]),
        ("tdmpc2 train student_config.ste", ["student_config.steps="]),
        ("tdmpc2 train teacher_config.batch_s", ["teacher_config.batch_size="]),
        ("tdmpc2 evaluate model_size=", ["model_size=1"]),
        ("tdmpc2 evaluate --checkpoint x.pt --eval_n", ["--eval_noise="]),
    ],
)
def test_word_goes_on(
    line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answers(line, monkeypatch, capsys) == expected


def test_empty_word_offers_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"train", "doctor"} <= set(answers("tdmpc2 ", monkeypatch, capsys))


@pytest.mark.parametrize("words", [["-sc", "install=bash"], ["train", "--shell-completion", "install=bash"]])
def test_installation_is_printed(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tdmpc2"])
    main(words)
    out = capsys.readouterr().out
    assert out.rstrip().endswith("complete -o nospace -o default -F hydra_bash_completion tdmpc2")


def test_command_being_typed_is_not_yet_the_command() -> None:
    assert last_command("tdmpc2 tra") == (None, "tra")
    assert last_command("tdmpc2 train ") == ("train", "")
    assert last_command("tdmpc2 train steps=1 se") == ("train", "se")
