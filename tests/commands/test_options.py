"""Options of the commands without Hydra: values, places, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdmpc2.commands.options import Option, parse

OPTIONS = (
    Option("source", "what is read", many=True, required=True, bare=True),
    Option("out", "what is written", kind=Path, required=True, bare=True),
    Option("rows", "how many", 5, int, least=1, aliases=("count",)),
    Option("force", "replace", False, bool),
    Option("form", "which", "a", choices=("a", "bee")),
)


def values(*words: str) -> dict[str, Any]:
    return parse(words, OPTIONS)[0]


@pytest.mark.parametrize(
    "words",
    [
        ("x", "y", "z"),
        ("out=z", "x", "y"),
        ("source=x,y", "z"),
        ("source=[x,y]", "--out", "z"),
        ("[x,y]", "z"),
        ("--source", "x", "y", "--out=z"),
        ("source=x", "source=y", "out=z"),
    ],
)
def test_places_and_names_mean_the_same(words: tuple[str, ...]) -> None:
    read = values(*words)
    assert (read["source"], read["out"]) == (("x", "y"), Path("z"))


def test_defaults_stand_in_for_what_is_not_typed() -> None:
    read = values("x", "z")
    assert (read["rows"], read["force"], read["form"]) == (5, False, "a")


def test_alias_is_the_option() -> None:
    assert values("x", "z", "count=7")["rows"] == 7


@pytest.mark.parametrize(("typed", "value"), [("--force", True), ("force=true", True), ("force=False", False)])
def test_switch_may_have_a_value(typed: str, value: bool) -> None:
    assert values("x", "z", typed)["force"] is value


def test_name_with_a_comma_is_one_value() -> None:
    assert values("a,b", "z")["source"] == ("a,b",)


def test_other_keys_are_handed_on() -> None:
    assert parse(["x", "z", "steps=3"], OPTIONS, ["steps"])[1] == {"steps": "3"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "out is missing: out=... (what is written)"),
        ([], "source is missing"),
        (["x", "z", "rowz=1"], "Unknown key 'rowz' on the command line. Did you mean 'rows'?"),
        (["x", "z", "rows=0"], "rows=0 must be at least 1"),
        (["x", "z", "rows=many"], "rows=many must be a whole number"),
        (["x", "z", "--rows"], "rows needs a value"),
        (["x", "z", "form=be"], "form: 'be' is not one of a, bee. Did you mean 'bee'?"),
        (["x", "z", "force=maybe"], "force=maybe must be true or false"),
        (["source=x", "out=z", "y"], "'y' is not of the form key=value"),
    ],
)
def test_mistake_is_said_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(words, OPTIONS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
