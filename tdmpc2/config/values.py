"""Values from command lines and files as the type of the configuration key they are for."""

from __future__ import annotations

import math
import os
import re
import types
import typing
from pathlib import Path
from typing import Any

_PATHS = ("checkpoint", "data_dir", "work_dir", "compare")
_ARITHMETIC = re.compile(r"\s*([-+]?[\d._]+(?:e[-+]?\d+)?)\s*([-+*/])\s*([\d._]+(?:e[-+]?\d+)?)\s*", re.IGNORECASE)


def convert(name: str, hint: Any, value: Any) -> Any:
    """``value`` as the type ``hint`` of key ``name``.

    Numbers may be written as ``1e6`` or as one operation, ``1000*500``; paths may begin with ``~``.

    Raises:
        ValueError: it is not of that type; the message names key, value and type.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    want = next(option for option in options if option is not type(None))
    if want in (int, float) and isinstance(value, str):
        value = _number(value)
    if typing.get_origin(want) is tuple and isinstance(value, (list, tuple, str)):
        return tuple(str(item).strip() for item in (value.split(",") if isinstance(value, str) else value))
    if want is str and name == "compile" and isinstance(value, bool):
        return str(value).lower()
    if name == "distillation_cache" and value is False:
        return "off"  # which YAML reads as false
    if want is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    if want is str and isinstance(value, (int, float, Path)) and not isinstance(value, bool):
        value = str(value)
    if name in _PATHS and isinstance(value, str):
        return os.path.expanduser(value)
    if isinstance(want, type) and isinstance(value, want) and not (want is int and isinstance(value, bool)):
        return value
    nullable = " or null" if type(None) in options else ""
    raise ValueError(f"{name}={value!r} must be {getattr(want, '__name__', want)}{nullable}")


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
