"""The words of a command line as overrides Hydra can read, checked against the configuration's keys.

Hydra's own grammar refuses paths with ``=``, brackets or accents unless they are quoted twice, once for the shell and
once for Hydra, and its messages take several lines. Here every value that is one text is quoted where it must be.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from tdmpc2.commands.words import Word, depth, is_option, read, repeated_key
from tdmpc2.config import Config, check_keys, is_nothing, key_hint, key_names
from tdmpc2.tasks import nearest


@dataclass(frozen=True)
class Line:
    """A command line for Hydra: its own flags first, then all overrides in a row, the only order that it takes.

    Attributes:
        flags: such as ``--multirun`` and ``--cfg job``.
        overrides: checked and quoted.
        completion: shell completion is asked for; ``overrides`` then say what of it.
    """

    flags: Sequence[str]
    overrides: Sequence[str]
    completion: bool = False


def read_line(argv: Sequence[str], groups: Sequence[str] = (), bare: str | None = None) -> Line:
    """Take a command line apart, check its keys and quote its values.

    Args:
        argv: words as typed.
        groups: configurations composed under a name of their own (train); keys without a name are the first one's.
        bare: key of a value without one, as in ``evaluate.py some/file.pt``; None: such values are refused.

    Raises:
        ValueError: a flag, key or value that cannot be; one line that says what to type.
    """
    flags, rest = _split(argv)
    arguments = get_args_parser()
    arguments.error = _refuse  # type: ignore[method-assign]
    parsed = arguments.parse_args(flags)
    if parsed.shell_completion:
        return Line(flags, rest, completion=True)
    hints = typing.get_type_hints(Config)
    switches = [name for name in key_names() if hints[name] is bool]
    switches += [f"{group}.{name}" for group in groups for name in switches]
    lists = [name for name in key_names() if _type_of(hints[name]) is tuple]
    lists += [f"{group}.{name}" for group in groups for name in lists]
    found = read(rest, switches, lists)
    if bare is not None:
        _check_one(found, bare)
    words = [_named(word, groups, bare) for word in found]
    many = parsed.multirun or any((w.key, str(w.value).upper()) == ("hydra.mode", "MULTIRUN") for w in words)
    _check_absent(words, groups)
    overrides = []
    for word in words:
        assert word.key is not None
        check_key(word, groups)
        overrides.append(_override(word, hints, groups, many))
    return Line(flags, overrides)


def _check_one(words: Sequence[Word], bare: str) -> None:
    """Raise ``ValueError`` for a second value of the key that needs no name: the last one would win without a word."""
    values = [str(word.value) for word in words if word.key in (None, bare)]
    if len(values) > 1 and any(word.key is None for word in words):
        first, second = values[:2]
        raise ValueError(
            f"{second} is one file too many beside {first}: --multirun {bare}={first},{second} takes one after the "
            f"other, and evaluate compares both on the same episodes with compare={second}"
        )


def _check_absent(words: Sequence[Word], groups: Sequence[str]) -> None:
    """Raise ``ValueError`` for a key of a group that the same line sets to null."""
    for group in groups:
        absent = any(
            w.key == group and (w.prefix == "~" or (w.value is not None and is_nothing(w.value))) for w in words
        )
        inside = next((w for w in words if str(w.key).startswith(f"{group}.")), None)
        if absent and inside is not None:
            raise ValueError(f"{inside.key}={inside.value} beside {group}=null: leave out one of them")


def check_key(word: Word, groups: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the word's key is one of the configuration, of a group's or of Hydra."""
    key = str(word.key)
    if _is_hydra(key):
        return
    group, _, name = key.partition(".")
    if not groups:
        check_keys([key], "the command line")
    elif group.partition("@")[0] not in groups:
        options = [*key_names(), *groups, *(f"{group}.{name}" for group in groups for name in key_names())]
        raise ValueError(f"Unknown key '{key}' on the command line.{key_hint(key, options)}")
    elif name:
        check_keys([name], f"{group} on the command line")


def parse(overrides: Iterable[str]) -> list[Override]:
    """Read overrides as Hydra does."""
    return OverridesParser.create().parse_overrides(list(overrides))


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's flags with their values from everything else."""
    takes_value = {text: a.nargs != 0 for a in get_args_parser()._actions for text in a.option_strings}
    choices = {text: a.choices for a in get_args_parser()._actions for text in a.option_strings}
    flags, rest, left = [], [], list(argv)
    while left:
        word = left.pop(0)
        if (name := word.partition("=")[0]) not in takes_value:
            rest.append(word)
            if is_option(word) and not word.startswith("--"):
                raise ValueError(f"Unknown option {word}.{nearest(f'-{word}', _flags())} Keys are set as key=value")
            continue
        flags.append(word)
        optional = name in ("--info", "-i")
        if takes_value[name] and name == word and left and (not optional or left[0] in (choices[name] or ())):
            flags.append(left.pop(0))
    return flags, rest


def _flags() -> list[str]:
    return [text for action in get_args_parser()._actions for text in action.option_strings]


def _refuse(message: str) -> typing.NoReturn:
    raise ValueError(message)


def _named(word: Word, groups: Sequence[str], bare: str | None) -> Word:
    """The word with the full name of its key."""
    if word.key is None:
        if bare is None:
            raise ValueError(f"'{word.value}' is not of the form key=value: write checkpoint={word.value}, for example")
        word = word._replace(key=bare)
    if groups and word.key in key_names():
        return word._replace(key=f"{groups[0]}.{word.key}")
    return word


def _override(word: Word, hints: Mapping[str, Any], groups: Sequence[str], many: bool) -> str:
    """The text of one override.

    Args:
        word: with the full name of its key.
        hints: key -> type.
        groups: see :func:`read_line`.
        many: values separated by commas are runs of a multirun.
    """
    assert word.key is not None
    key, value = f"{word.prefix}{word.key}", word.value
    hint = hints.get(word.key.rpartition(".")[2]) if not _is_hydra(word.key) else None
    if value is None:
        if word.prefix == "~":
            return key
        if hint is not bool:
            raise ValueError(f"{word.key} needs a value: {word.key}=...")
        return f"{key}=true"
    if is_nothing(value) and (word.key in groups or type(None) in typing.get_args(hint)):
        return f"{key}=null"
    if _type_of(hint) is tuple and not many and "," in value and not value.startswith(("[", "'", '"')):
        value = f"[{value}]"
    if (twice := repeated_key(value)) is not None:
        raise ValueError(f"{word.key}={word.value}: '{twice}' is there twice: leave out one of them")
    quoted = f"{key}={_quoted(value)}"
    try:
        (parsed,) = parse([f"{key}={value}"])
    except HydraException:
        if value.startswith(("[", "{")):
            raise ValueError(_cannot_be_read(word.key, value)) from None
        return quoted
    if parsed.is_sweep_override():
        if not many and os.path.exists(os.path.expanduser(value)):
            return quoted
        if not many:
            raise ValueError(
                f"{word.key}={value} names several values: add --multirun for one run of each, or quote one value that "
                f"has a comma in it: \"{word.key}='{value}'\""
            )
    elif _type_of(hint) is str and type(parsed.value()) in (int, float):
        return quoted  # a name such as 007 or 1e5 stays what was typed
    return f"{key}={value}"


def _cannot_be_read(key: str, value: str) -> str:
    if depth(value):
        return f'{key}={value}: brackets do not match. Write it in double quotes, as in "{key}=[a,b]"'
    return (
        f"{key}={value} cannot be read: put texts with = ( ) or other signs in single quotes and the whole in double "
        f"quotes, as in \"{key}=['a=b',c]\""
    )


def _quoted(text: str) -> str:
    """A text as Hydra reads it whatever it consists of; a backslash means itself unless a quote or the end follows."""
    quote = '"' if "'" in text and '"' not in text else "'"
    escaped = []
    slashes = 0
    for character in f"{text}\0":
        if character in (quote, "\0"):
            escaped.append("\\" * (2 * slashes + (character == quote)))
        else:
            escaped.append("\\" * (slashes * (character != "\\")))
        slashes = slashes + 1 if character == "\\" else 0
        escaped.append(character * (character not in "\\\0"))
    return f"{quote}{''.join(escaped)}{quote}"


def _type_of(hint: Any) -> Any:
    """The one type of a key that may also be null."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next((option for option in options if option is not type(None)), None)
    return typing.get_origin(kind) or kind


def _is_hydra(key: str) -> bool:
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))
