"""The forms in which a command line may be typed, and how it is split into words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdmpc2.commands.words import Word, items, listed, read, repeated_key


@pytest.mark.parametrize("typed", [["steps=3"], ["--steps", "3"], ["--steps=3"]])
def test_setting_may_be_written_in_three_ways(typed: list[str]) -> None:
    """Mixing up `key=value` and `--key value` used to be the most likely first mistake."""
    assert read(typed) == [Word("steps", "3")]


def test_dashes_in_a_key_are_underscores() -> None:
    assert read(["--batch-size", "8", "log-freq=2"]) == [Word("batch_size", "8"), Word("log_freq", "2")]


def test_switch_takes_only_a_truth_value() -> None:
    words = read(["--force", "x.pt", "--force", "false"], switches=["force"])
    assert words == [Word("force", None), Word(None, "x.pt"), Word("force", "false")]


def test_list_takes_what_follows_up_to_the_next_key() -> None:
    words = read(["--compare", "a.pt", "b.pt", "steps=3", "c.pt"], lists=["compare"])
    assert words == [Word("compare", "[a.pt,b.pt]"), Word("steps", "3"), Word(None, "c.pt")]


def test_negative_number_is_a_value() -> None:
    assert read(["--limit", "-40", "--vmin", "-1e1"]) == [Word("limit", "-40"), Word("vmin", "-1e1")]


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        (["tasks=[a,", "b]"], "[a, b]"),
        (["--tasks", "[a,", "b]"], "[a, b]"),
        (["--tasks=[a,", "b,", "c]"], "[a, b, c]"),
        (["tasks=[{share:", "0.3,", "kind:", "policy}]"], "[{share: 0.3, kind: policy}]"),
        (["tasks=range(1,", "5)"], "range(1, 5)"),
    ],
)
def test_list_the_shell_took_apart_is_one_value(typed: list[str], value: str) -> None:
    """`tasks=[a, b]` without quotes used to end in "no viable alternative at input"."""
    assert read([*typed, "steps=3"]) == [Word("tasks", value), Word("steps", "3")]


def test_open_bracket_is_refused_with_what_to_type() -> None:
    with pytest.raises(ValueError, match=r'a bracket is not closed. Write it in double quotes, as in "tasks=\[a,b\]"'):
        read(["tasks=[a,", "b", "steps=3"])


def test_file_name_with_a_lone_bracket_swallows_nothing() -> None:
    assert read(["checkpoint=a(1.pt", "steps=3"]) == [Word("checkpoint", "a(1.pt"), Word("steps", "3")]


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("checkpoint=~/x.pt", "HOME/x.pt"),
        ("teacher_config=~", "~"),
        ("mix=[{checkpoint: ~/x.pt}]", "[{checkpoint: HOME/x.pt}]"),
        ("compare=[~/a.pt,~/b.pt]", "[HOME/a.pt,HOME/b.pt]"),
        ("checkpoint=backup~/x.pt", "backup~/x.pt"),
    ],
)
def test_home_directory_is_expanded_where_shells_leave_it(
    monkeypatch: pytest.MonkeyPatch, typed: str, value: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read([typed])[0].value == value.replace("HOME", "/home/me")


def test_path_with_an_equals_sign_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.pt").touch()
    assert read(["runs/lr=0.1/model.pt", "lr=1.pt"]) == [Word(None, "runs/lr=0.1/model.pt"), Word(None, "lr=1.pt")]


def test_prefixes_of_hydra_are_kept() -> None:
    assert read(["+new=1", "++steps=2", "~teacher_config"]) == [
        Word("new", "1", "+"),
        Word("steps", "2", "++"),
        Word("teacher_config", None, "~"),
    ]


def test_listed_values_are_read_back() -> None:
    values = ["a", "with, comma", "x y"]
    assert items(listed(values)) == values
    assert items("a, b,'c,d'") == ["a", "b", "c,d"]


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("{a: x, b: y}", None),
        ("{a: x, a: x}", "a"),
        ("{'a,b': x, c: 'a: y, c: z'}", None),
        ("{'my:Task-v0': x, \"my:Task-v0\": y}", "my:Task-v0"),
        ("[{a: 1}, {a: 2}]", None),
        ("{a: {b: 1}, b: {a: 1}}", None),
        ("{a: {b: 1, b: 2}}", "b"),
        ("{a: C:/x, C: y}", None),
        ("a: x, a: y", None),
    ],
)
def test_repeated_key_is_found_within_one_mapping(text: str, twice: str | None) -> None:
    """teachers={a: x, a: y} used to take the last value silently."""
    assert repeated_key(text) == twice
