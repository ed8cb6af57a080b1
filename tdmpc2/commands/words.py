"""The dialect of all commands: ``key=value``, ``--key value``, ``--key=value`` and values without a key.

Shells take lines apart at spaces and expand ``~`` only at the beginning of a word, so ``tasks=[a, b]`` arrives in two
pieces and ``checkpoint=~/x.pt`` unexpanded. Both are mended here, before anything looks at the values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

_SETTING = re.compile(r"(?P<prefix>\+\+?|~)?(?P<key>[A-Za-z_][\w.@/-]*)=(?P<value>.*)", re.DOTALL)
_DELETION = re.compile(r"~(?P<key>[A-Za-z_][\w.@]*)")
_HOME = re.compile(r"(?<![^\s\[({,:=])~(?=/|$)")
_ITEM = re.compile(r"""\s*'[^']*'|\s*"[^"]*"|[^,]+""")
_OPENING, _CLOSING = "[({", "])}"
#: How lists, mappings and Hydra's sweeps begin: values that may have spaces in them.
_COMPOUND = re.compile(r"[\[{]|(choice|range|interval|glob|sort|shuffle|tag)\(")


class Word(NamedTuple):
    """One thing said on a command line.

    Attributes:
        key: with ``_`` for ``-``; None: a value without a key.
        value: None: a key without a value, such as ``--force`` and ``~teacher_config``.
        prefix: Hydra's ``+``, ``++`` or ``~``.
    """

    key: str | None
    value: str | None
    prefix: str = ""


def read(argv: Sequence[str], switches: Collection[str] = (), lists: Collection[str] = ()) -> list[Word]:
    """Take a command line apart.

    Args:
        argv: the words as the shell passed them on.
        switches: keys that may stand without a value as ``--key``: they take the next word only if it is a truth value.
        lists: keys that take all following values as ``--key``; several become ``[a,b]``.

    Raises:
        ValueError: a bracket that is not closed.
    """
    left = list(_joined(argv))
    words = []
    while left:
        word = left.pop(0)
        if is_option(word):
            key, equals, value = word.lstrip("-").partition("=")
            key = key.replace("-", "_")
            words.append(Word(key, _expanded(value) if equals else _following(key, left, switches, lists)))
        elif match := setting(word):
            words.append(Word(match["key"].replace("-", "_"), _expanded(match["value"]), match["prefix"] or ""))
        elif match := _DELETION.fullmatch(word):
            words.append(Word(match["key"], None, "~"))
        else:
            words.append(Word(None, _expanded(word)))
    return words


def is_option(word: str) -> bool:
    """True for ``--key``, ``--key=value`` and ``-k``; false for negative numbers and for ``-`` alone."""
    return re.match(r"--?[A-Za-z]", word) is not None


def setting(word: str) -> re.Match[str] | None:
    """Match ``key=value``. A file whose name has ``=`` in it, as in ``runs/lr=1/model.pt``, is none."""
    match = _SETTING.fullmatch(word)
    if match is None or os.path.exists(word) or ("/" in match["key"] and not match["key"].startswith("hydra/")):
        return None
    return match


def items(value: str) -> list[str]:
    """The values of a list, ``[a,b]`` or ``a,b``."""
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [text for item in _ITEM.findall(inner) if (text := item.strip().strip("'\""))]


def listed(values: Sequence[str]) -> str:
    """Several values as one, ``[a,b]``; one with a comma in it stands in quotes."""
    return f"[{','.join(repr(value) if ',' in value else value for value in values)}]"


def _following(key: str, left: list[str], switches: Collection[str], lists: Collection[str]) -> str | None:
    """Take the value of ``--key`` from the words after it."""
    if key in switches:
        return left.pop(0) if left and left[0].lower() in ("true", "false") else None
    values: list[str] = []
    while left and not is_option(left[0]) and not (values and (key not in lists or setting(left[0]))):
        values.append(_expanded(left.pop(0)))
    if not values:
        return None
    return values[0] if len(values) == 1 else listed(values)


def _joined(argv: Sequence[str]) -> Iterator[str]:
    """The words, those between an opening bracket and its closing one as one."""
    left = list(argv)
    while left:
        word = left.pop(0)
        match = _SETTING.fullmatch(word)
        value = match["value"] if match else word.partition("=")[2] if is_option(word) else word
        if _COMPOUND.match(value):
            while depth(word) > 0:
                if not left:
                    raise ValueError(f'{word}: a bracket is not closed. Write it in double quotes, as in "tasks=[a,b]"')
                word = f"{word} {left.pop(0)}"
        yield word


def depth(text: str) -> int:
    """Number of brackets that are open at the end of a text; those in quotes do not count."""
    count, quote = 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            count += (character in _OPENING) - (character in _CLOSING)
    return count


def repeated_key(text: str) -> str | None:
    """Find a key that a mapping in a value has twice; Hydra keeps the last of them and says nothing."""
    keys: list[set[str] | None] = []  # of each open bracket; None: it is no mapping
    begin: int | None = 0  # of what may be a key
    quote = ""
    for place, character in enumerate(text):
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        elif character in _OPENING:
            keys.append(set() if character == "{" else None)
            begin = place + 1
        elif character in _CLOSING:
            del keys[-1:]
        elif character == ",":
            begin = place + 1
        elif character == ":" and keys and (of_mapping := keys[-1]) is not None and begin is not None:
            key, begin = text[begin:place].strip().strip("'\""), None
            if key in of_mapping:
                return key
            of_mapping.add(key)
    return None


def _expanded(value: str) -> str:
    if value == "~":  # YAML's null, as in teacher_config=~
        return value
    return _HOME.sub(lambda _: os.path.expanduser("~"), value)
