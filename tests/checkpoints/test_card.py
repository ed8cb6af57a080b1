"""Cards inside checkpoint files: kept in all forms of a file, checked when it is read, shown without harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.checkpoints.card import card_lines, check_card
from tdmpc2.checkpoints.files import convert, load_file, save_file
from tdmpc2.commands import checkpoint as command
from tdmpc2.config import Config
from tdmpc2.quantization.copies import full_payload, payload
from tdmpc2.quantization.recipes import RECIPES
from tests.helpers.cards import SHA256, card, score, trust


@pytest.fixture
def path(tmp_path: Path, config: Config, state: dict[str, Tensor]) -> Path:
    save_file(tmp_path / "x.pt", {"model": state, "config": config.to_dict(), "card": card()}, overwrite=False)
    return tmp_path / "x.pt"


def test_card_is_read_as_it_was_written(path: Path) -> None:
    assert load_file(path).card == card()


@pytest.mark.parametrize("layout", ["a", "b", "safetensors"])
def test_card_of_converted_file_is_the_same(path: Path, layout: str) -> None:
    out = path.with_name("y.safetensors" if layout == "safetensors" else "y.pt")
    save_file(out, convert(load_file(path), layout), overwrite=False)
    assert load_file(out).card == card()


@pytest.mark.parametrize("recipe", ["fp16", "int8"])
def test_card_of_quantised_file_names_the_file_that_was_scored(path: Path, recipe: str) -> None:
    """The scores of a full-precision file must not pass for those of its quantised copy."""
    out = path.with_name(f"x_{recipe}.pt")
    save_file(out, payload(load_file(path), RECIPES[recipe]), overwrite=False)
    kept = load_file(out, identify=True)
    assert kept.card == {name: value for name, value in card().items() if name != "files"}
    assert any("45.50" in line and f"of another file, sha256 {SHA256[:16]}" in line for line in card_lines(kept.card))
    assert not any("another file" in line for line in card_lines(card()))


def test_file_without_card_gets_none_when_quantised(config: Config, state: dict[str, Tensor]) -> None:
    assert "card" not in full_payload(load_file({"model": state, "config": config.to_dict()}))


BAD: dict[str, tuple[Any, str]] = {
    "text": ("a card", "card holds 'a card', expected named entries"),
    "newer": (card(format=2), "card has format 2, this version reads up to 1: update tdmpc2"),
    "no format": ({"written_by": "x"}, "card: format is missing"),
    "unknown entry": (card(extra=1), "card: 'extra' is not an entry"),
    "hours": (card(hours=float("nan")), "card: hours is nan, expected a finite number"),
    "long": (card(command="x" * 20_000), "card: command is .* at most 16,000 letters"),
    "many": (card(teachers={f"t{i}": "x" for i in range(1001)}), "card: teachers is .* at most 1,000"),
    "score": (card(scores=[score(interval=[1.0, 2.0, 3.0])]), "card, score 0: interval is"),
    "task": (card(scores=[score(tasks={"t": {"return": "high"}})]), "card, score 0, t: return is 'high'"),
    "trust": (card(trust=trust(rollout_worse=1.5)), "card, trust: rollout_worse is 1.5, .* from 0 to 1"),
    "task of trust": (card(trust=trust(tasks={"t": {"starts": 1}})), "card, trust, t: rollout_worse is missing"),
    "sha256": (card(files=["xyz"]), "card: files is"),
    "license": (card(license="Mit; rm"), "card: license is"),
}


@pytest.mark.parametrize("case", BAD)
def test_file_with_wrong_card_is_refused_by_name(tmp_path: Path, state: dict[str, Tensor], case: str) -> None:
    """A card that is malformed, too large or of a newer version is refused in one line, not with a traceback."""
    content, message = BAD[case]
    torch.save({"model": state, "card": content}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as error:
        load_file(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_inspect_shows_the_card_without_control_characters(
    path: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Tensor]
) -> None:
    """Control characters in a card are printed as escapes, so that they cannot clear the terminal."""
    wicked = card(processor="\x1b[2J", teachers={"walk\ner": "a\r.pt"}, commit="0123456789ab")
    save_file(path, {"model": state, "card": wicked}, overwrite=True)
    command.main(["inspect", str(path)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "trained on            \\x1b[2J" in out
    assert "teacher               walk\\ner: a\\r.pt" in out
    assert "score, planner        45.50 [44.0, 47.0] (normalized score; 6 x 512 samples, horizon 3, fp32, noise" in out
    assert "trust                 a rollout of 3 steps is worse than no change at 25% of the starts" in out


def test_smallest_card_is_one() -> None:
    assert check_card("x.pt", {"format": 1, "written_by": "me"}) == {"format": 1, "written_by": "me"}
