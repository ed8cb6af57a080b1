"""Options of the commands that compose no configuration: one row each, read from the words of :mod:`.words`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc2.commands.words import Word, items, listed, read
from tdmpc2.config.aliases import key_hint
from tdmpc2.tasks import nearest

_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Option:
    """One key of a command.

    Attributes:
        key: its name, as in ``key=value``; ``--key value`` is the same.
        help: explanation, one line.
        default: its value where nothing is said.
        kind: makes a value of the text: ``str``, ``int``, ``float``, ``Path``; ``bool``: a switch.
        many: takes several values; its value is a tuple.
        required: the command cannot do without it.
        bare: takes values without a key, in the order of the rows.
        choices: the values it may have; empty: any.
        least: smallest number.
        most: largest number.
        aliases: other names people may know it by.
    """

    key: str
    help: str
    default: Any = None
    kind: Callable[[str], Any] = str
    many: bool = False
    required: bool = False
    bare: bool = False
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    aliases: tuple[str, ...] = ()

    def value(self, text: str | None) -> Any:
        """Turn a text into the option's value.

        Raises:
            ValueError: it has no such value; the message names key, value and what would be one.
        """
        if self.kind is bool:
            if text is not None and text.lower() not in _TRUTH:
                raise ValueError(f"{self.key}={text} must be true or false")
            return text is None or _TRUTH[text.lower()]
        values = items(text or "") if self.many else [text] if text and text.strip() else []
        if not values or any("\0" in value for value in values):
            raise ValueError(f"{self.key} needs a value: {self.key}=...")
        return tuple(map(self._one, values)) if self.many else self._one(values[0])

    def _one(self, text: str) -> Any:
        if self.choices and text not in self.choices:
            raise ValueError(
                f"{self.key}: '{text}' is not one of {', '.join(self.choices)}.{nearest(text, self.choices)}"
            )
        try:
            value = self.kind(text)
        except ValueError:
            name = {"int": "a whole number", "float": "a number"}.get(getattr(self.kind, "__name__", ""), "valid")
            raise ValueError(f"{self.key}={text} must be {name}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{self.key}={text} must be a finite number")
        if self.least is not None and value < self.least:
            raise ValueError(f"{self.key}={text} must be at least {self.least:g}")
        if self.most is not None and value > self.most:
            raise ValueError(f"{self.key}={text} must be at most {self.most:g}")
        return value.expanduser() if isinstance(value, Path) else value


def parse(
    argv: Sequence[str], options: Sequence[Option], others: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a command line.

    Args:
        argv: its words.
        options: the rows of the command.
        others: further keys, whose texts are returned as they are.

    Returns:
        Key -> value of every option, and key -> text of those of ``others`` that were typed.

    Raises:
        ValueError: unknown or missing key, or a value that cannot be; one line.
    """
    by_name = {name: option for option in options for name in (option.key, *option.aliases)}
    switches = [name for name, option in by_name.items() if option.kind is bool]
    lists = [name for name, option in by_name.items() if option.many]
    texts: dict[str, str | None] = {}
    rest: dict[str, str] = {}
    bare = []
    for word in read(argv, switches, lists):
        if word.key is None:
            bare.append(str(word.value))
        elif word.key in by_name and not word.prefix:
            option = by_name[word.key]
            texts[option.key] = _more(texts.get(option.key), word.value) if option.many else word.value
        elif word.key in others and not word.prefix:
            if word.value is None:
                raise ValueError(f"{word.key} needs a value: {word.key}=...")
            rest[word.key] = word.value
        else:
            raise ValueError(unknown(word, [*by_name, *others]))
    texts |= _place(bare, [option for option in options if option.bare and option.key not in texts])
    if missing := [option for option in options if option.required and option.key not in texts]:
        raise ValueError(f"{missing[0].key} is missing: {missing[0].key}=... ({missing[0].help})")
    values = {option.key: option.default for option in options}
    return values | {key: by_name[key].value(text) for key, text in texts.items()}, rest


def unknown(word: Word, names: Sequence[str]) -> str:
    """The message for a key that is none of ``names``."""
    return f"Unknown key '{word.prefix}{word.key}' on the command line.{key_hint(str(word.key), names)}"


def _more(before: str | None, text: str | None) -> str | None:
    return text if before is None or text is None else listed([*items(before), *items(text)])


def _several(text: str) -> list[str]:
    return items(text) if text.startswith("[") else [text]


def _place(bare: list[str], places: list[Option]) -> dict[str, str | None]:
    """Values without a key -> the options they are for; one that takes many leaves one for each other place."""
    texts: dict[str, str | None] = {}
    for index, option in enumerate(places):
        later = len(places) - index - 1
        count = max(1, len(bare) - later) if option.many else 1
        taken, bare = bare[:count], bare[count:]
        if taken:
            texts[option.key] = listed([one for text in taken for one in _several(text)]) if option.many else taken[0]
    if bare:
        raise ValueError(f"'{bare[0]}' is not of the form key=value, and nothing here takes it without a key")
    return texts
