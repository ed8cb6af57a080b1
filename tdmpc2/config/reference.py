"""The reference of all keys, docs/configuration.md, written from the table of keys."""

from __future__ import annotations

from itertools import groupby

from tdmpc2.config.facts import FIXED, MAY_CHANGE, ONE_START, RUN
from tdmpc2.config.tables import KEYS, HelpRow, help_rows

_HEAD = """\
# Configuration

Written by `python -m tdmpc2.config --write docs/configuration.md` from `tdmpc2/config/keys.py`; edit that file.

Keys are typed behind a command, as in `steps=1000`. In training, keys of the student may stand behind
`student_config.`, and `teacher_config.checkpoint=FILE` names the teacher's file; `teacher_config=null` (or `none`)
trains without one. Numbers may be written as `1e6`, `50_000` or `1000*500`, paths may begin with `~`, and `none` means
the same as `null`. An unknown key or value is an error that suggests the nearest one.

A key that *follows* another one need not be typed. `num_samples=64` alone takes 8 elites and 3 policy trajectories, the
proportions of 512, and those of the file where a file is evaluated. Widths follow from `model_size` and are refused
beside it if they differ; `model_size=null` takes them as typed.

The last column is about continuing a run: a key *may change*, must be as it was (*fixed*), or concerns a single *start*
of the program and is not recorded. Keys marked with a dagger (†) belong to the agent and are stored in its
checkpoints; the others say where and how it is trained, played or collected.
"""
_ON_RESUME = {FIXED: "fixed", MAY_CHANGE: "may change", ONE_START: "start"}


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for section, rows in groupby(help_rows(), key=lambda row: row.section):
        head = ["| key | default | values | what it is | commands | continued |", "|---|---|---|---|---|---|"]
        parts.append("\n".join([f"## {section}", "", *head, *map(_line, rows), ""]))
    return "\n".join(parts)


def _line(row: HelpRow) -> str:
    key = KEYS[row.key]
    default = (key.follows and f"{row.default} (follows `{key.follows}`)") or row.default
    cells = (
        f"`{row.key}`" + ("" if key.scope == RUN else " †"),
        default,
        row.values,
        row.explanation,
        ", ".join(key.commands),
        _ON_RESUME[key.on_resume],
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
