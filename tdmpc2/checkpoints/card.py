"""The card of a checkpoint: what a file says of its own training, scores and trust; an entry ``card`` of the file.

It comes from strangers like everything else in a file, so that every entry has a type and a bound, and lines of it are
escaped. Nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tdmpc2.support.entries import (
    SHA256,
    Entry,
    check_entries,
    flag,
    list_of,
    nothing_or,
    number,
    one_of,
    record,
    table_of,
    text,
    whole,
)
from tdmpc2.support.text import cut, escaped, shown

NAME = "card"  # of the entry
FORMAT = 1
_MOST = 1000  # tasks, teachers, scores, data sets


def _few(entry: Entry, most: int = _MOST) -> Entry:
    """A list or table of at most so many entries."""
    return Entry(
        lambda v: entry.allows(v) and len(v) <= most, f"{entry.words}, at most {most:,} of them", entry.required
    )


_WORDS = text(r"(?s).{1,300}", "a text of at most 300 letters")
_INTERVAL = nothing_or(_few(list_of(number(), least=2), 2))
_ERROR = number(0)
_TEXT = text(r"(?s).{1,16000}", "a text of at most 16,000 letters")
_CARD = {
    "format": whole(1, FORMAT),
    "written_by": _WORDS,
    "license": text(r"[a-z0-9][a-z0-9.+-]{0,40}", "the name of a license").optional,
    "command": _TEXT.optional,
    "commit": text(r"[0-9a-f]{7,64}", "the name of a commit, 7 to 64 hexadecimal digits").optional,
    "hours": number(0, 1e6).optional,
    "processor": _WORDS.optional,
    "start": _WORDS.optional,  # where the starting weights came from
    "steps": whole().optional,
    "teachers": _few(table_of(_WORDS)).optional,  # task, or "all", -> file
    "data": _few(list_of(record())).optional,
    "scores": _few(list_of(record())).optional,
    "trust": record().optional,
    "files": _few(list_of(SHA256), 20).optional,  # files that had these weights before the card was written
}
_DATA = {"name": _WORDS, "episodes": whole(1), "tasks": whole(1), "sha256": SHA256}
_SCORE = {
    "action": one_of(("planner", "policy")),
    "plan": _WORDS,
    "precision": _WORDS,
    "score": nothing_or(number()),
    "label": _WORDS,
    "interval": _INTERVAL,
    "episodes": whole(1),
    "seed": whole(),
    "noise": flag(),
    "sha256": SHA256,  # of the file that was played
    "tasks": _few(table_of(record())),
}
_TASK_SCORE = {"return": nothing_or(number()), "interval": _INTERVAL}
_TRUST = {
    "steps": whole(1),
    "starts": whole(1),
    "rollout_worse": number(0, 1),
    "data_sha256": SHA256,
    "sha256": SHA256,
    "tasks": _few(table_of(record())),
}
_TASK_TRUST = {
    "starts": whole(1),
    "rollout_worse": number(0, 1),
    "reward_rmse": _ERROR,
    "value_rmse": _ERROR.optional,
}


def check_card(origin: str, content: Any) -> dict[str, Any]:
    """Require that what a file has as its card is one.

    Args:
        origin: the file, for the message.
        content: its entry ``card``.

    Raises:
        ValueError: it is of a newer version, or an entry is missing, unknown, of another type or too large; the message
            names it.
    """
    where = f"{origin}: card"
    if isinstance(content, Mapping) and type(version := content.get("format")) is int and version > FORMAT:
        raise ValueError(f"{where} has format {shown(version)}, this version reads up to {FORMAT}: update tdmpc2")
    card = check_entries(where, content, _CARD)
    for index, data in enumerate(card.get("data", ())):
        check_entries(f"{where}, data {index}", data, _DATA)
    for index, score in enumerate(card.get("scores", ())):
        check_entries(f"{where}, score {index}", score, _SCORE)
        _check_tasks(f"{where}, score {index}", score["tasks"], _TASK_SCORE)
    if (trust := card.get("trust")) is not None:
        check_entries(f"{where}, trust", trust, _TRUST)
        _check_tasks(f"{where}, trust", trust["tasks"], _TASK_TRUST)
    return card


def _check_tasks(where: str, tasks: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    for name, found in tasks.items():
        check_entries(f"{where}, {cut(name, 80)}", found, entries)


def card_of_copy(card: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the entry of a copy with other numbers, such as a quantised one; its scores name the file that they are of.

    Args:
        card: of the file that is copied; None if it has none.

    Returns:
        ``{"card": ...}``, or nothing.
    """
    return {} if card is None else {NAME: {name: value for name, value in card.items() if name != "files"}}


# -- for readers ------------------------------------------------------------------------------------------------------


def card_lines(card: Mapping[str, Any], sha256: str | None = None) -> list[str]:
    """Write a checked card in lines, without characters that command a terminal.

    Args:
        card: as from :func:`check_card`.
        sha256: of the file itself; scores and trust figures of files with other weights say so.
    """
    own = {sha256, *card.get("files", ())}
    return [escaped(line) for line in _lines(card, own)]


def _lines(card: Mapping[str, Any], own: set[str | None]) -> Iterator[str]:
    told = {
        "command": "command",
        "commit": "commit",
        "start": "started from",
        "processor": "trained on",
        "license": "license",
    }
    yield f"{'card':22}written by {card['written_by']}"
    for key, label in told.items():
        if key in card:
            yield f"{label:22}{card[key]}"
    if "hours" in card:
        yield f"{'hours':22}{card['hours']:.2f}"
    for task, teacher in card.get("teachers", {}).items():
        yield f"{'teacher':22}{task}: {teacher}"
    for data in card.get("data", ()):
        yield (
            f"{'data':22}{data['name']}: {data['episodes']:,} episodes of {data['tasks']} tasks, "
            f"sha256 {data['sha256'][:16]}"
        )
    for score in card.get("scores", ()):
        yield f"{'score, ' + score['action']:22}{_score_line(score)}{_other_file(score, own)}"
        for task, found in score["tasks"].items():
            yield f"  {task:30}{_number(found['return'])} {_interval(found['interval'])}"
    if (trust := card.get("trust")) is not None:
        yield (
            f"{'trust':22}a rollout of {trust['steps']} steps is worse than no change at "
            f"{trust['rollout_worse']:.0%} of the starts "
            f"(median of {len(trust['tasks'])} tasks, {trust['starts']:,} starts){_other_file(trust, own)}"
        )
        for task, found in trust["tasks"].items():
            value = f", value error {found['value_rmse']:.4g}" if "value_rmse" in found else ""
            yield f"  {task:30}{found['rollout_worse']:.0%}, reward error {found['reward_rmse']:.4g}{value}"


def _score_line(score: Mapping[str, Any]) -> str:
    noise = "with exploration noise" if score["noise"] else "noise-free"
    return (
        f"{_number(score['score'])} {_interval(score['interval'])} ({score['label']}; {score['plan']}, "
        f"{score['precision']}, {noise}, {score['episodes']} episodes a task from seed {score['seed']})"
    )


def _other_file(found: Mapping[str, Any], own: set[str | None]) -> str:
    return "" if found["sha256"] in own else f" - of another file, sha256 {found['sha256'][:16]}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f}"


def _interval(interval: Any) -> str:
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "(no interval)"
