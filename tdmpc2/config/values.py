"""Values from command lines and files, converted to the type of their key and checked against its facts."""

from __future__ import annotations

import math
import os
import re
import types
import typing
from pathlib import Path
from typing import Any

from tdmpc2.config.facts import Key
from tdmpc2.support.text import cut, shown
from tdmpc2.tasks import nearest

_ARITHMETIC = re.compile(r"\s*([-+]?[\d._]+(?:e[-+]?\d+)?)\s*([-+*/])\s*([\d._]+(?:e[-+]?\d+)?)\s*", re.IGNORECASE)
_MOST_FLOAT = 1e30  # its products are still float32
_NOTHING = ("none", "null", "~")


def is_nothing(value: Any) -> bool:
    """True for None and for the words that are typed for it: ``none``, ``null`` and ``~``."""
    return value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING)


def convert(key: Key, hint: Any, value: Any) -> Any:
    """Convert ``value`` to the type ``hint`` of a key.

    Numbers may be written as ``1e6`` or as one operation, ``1000*500``; paths may begin with ``~``.

    Raises:
        ValueError: it is not of that type; the message names key, value and type.
    """
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()  # numpy's kinds of numbers
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    nullable = type(None) in options or key.unset(None)
    if nullable and is_nothing(value):
        return None
    if key.parse is not None:
        return key.parse(value)
    want = next(option for option in options if option is not type(None))
    if want in (int, float) and isinstance(value, str):
        value = _number(value)
    if typing.get_origin(want) is tuple and isinstance(value, (list, tuple, str)):
        return tuple(str(item).strip() for item in (value.split(",") if isinstance(value, str) else value))
    if want is str and isinstance(value, (list, tuple)):
        hint_of = "; tasks=[...] chooses some of a task set" if key.name == "task" else ""
        raise ValueError(f"{key.name}={shown(list(value))} must be one value, not a list{hint_of}")
    if key.choices and isinstance(value, bool):  # YAML reads on, off, true and false as a bool
        words = ("true", "on") if value else ("false", "off")
        return next((word for word in words if word in key.choices), words[0])
    if want is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if value.bit_length() < 1024 else math.inf
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key.name}={typed(value)} must be a finite number")
    if want is str and isinstance(value, (int, float, Path)) and not isinstance(value, bool):
        value = str(value)
    if key.path and isinstance(value, str):
        if not value.strip() or "\0" in value:
            raise ValueError(f"{key.name}={shown(value)} names no file or directory{': null means none' * nullable}")
        return os.path.expanduser(value)
    if isinstance(want, type) and isinstance(value, want) and not (want is int and isinstance(value, bool)):
        return value
    wanted = type_in_words(hint)
    raise ValueError(f"{key.name}={shown(value)} must be {wanted}{' or null' if nullable else ''}")


def typed(value: Any) -> str:
    """Write a value for a message as it was typed, cut if it is long."""
    return cut(value) if isinstance(value, str) else shown(value)


def check_value(key: Key, value: Any) -> None:
    """Raise ``ValueError`` if a value is not one of its key's choices or beyond its limits; None always passes."""
    if value is None or isinstance(value, tuple):  # entries of lists are checked by what reads them
        return
    if len(key.choices) == 1 and value not in key.choices:
        raise ValueError(f"{key.name}={typed(value)}: only '{key.choices[0]}' is supported")
    if key.choices and value not in key.choices:
        hint = nearest(str(value), key.choices)
        raise ValueError(f"{key.name}={typed(value)} is not one of {', '.join(key.choices)}{hint and '.'}{hint}")
    if isinstance(value, (int, float)) and not key.allows(value):
        raise ValueError(f"{key.name}={typed(value)} must be {key.limits}")
    most = key.sensible or (_MOST_FLOAT if isinstance(value, float) else None)
    if isinstance(value, (int, float)) and most is not None and abs(value) > most:
        sign = "-" if value < 0 else ""
        bound = f"at {'least' if sign else 'most'} {sign}{most:{',.0f' if most < 1e9 else 'g'}}"
        raise ValueError(f"{key.name}={typed(value)} must be {bound}: nothing computes with more")


def type_in_words(hint: Any) -> str:
    """A type as a user would call it, such as ``a whole number``."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    want = next(option for option in options if option is not type(None))
    if typing.get_origin(want) is tuple:
        return "a list"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[want]


def _number(text: str) -> Any:
    try:
        if match := _ARITHMETIC.fullmatch(text):
            left, right = float(match[1]), float(match[3])
            return {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or float("nan"))}[
                match[2]
            ]
        return float(text)
    except ValueError:
        return text
