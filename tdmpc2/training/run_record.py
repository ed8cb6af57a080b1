"""The record of a run, ``run.json``: its configuration, teacher and data.

A run is continued only with what it began with; :func:`check` says what may change.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tdmpc2.checkpoints.run_state import START_NEW, state_path
from tdmpc2.config import CHANGEABLE, ONE_START_KEYS, Config, completed, from_record
from tdmpc2.support.entries import SHA256, check_entries, flag, nothing_or, table_of, text
from tdmpc2.support.entries import record as entries_of
from tdmpc2.support.files import read_json, write_text
from tdmpc2.support.text import cut, shown

MADE = "made_outputs"
#: Entries of the record that are not keys of the configuration, whose own table checks those.
RECORD = {
    "teacher_sha256": nothing_or(SHA256).optional,
    "data": nothing_or(table_of(text())).optional,
    #: In a run that older versions began from a checkpoint: its seed steps are random, not the checkpoint's policy.
    "random_seed_steps": flag().optional,
    #: How the columns were made that do not follow from the teacher's file alone, such as plans: settings by column.
    MADE: table_of(entries_of()).optional,
}
#: Entries that are compared elsewhere, or never.
_APART = {"random_seed_steps", MADE}


def check(cfg: Config, teacher_sha256: str | None, data: Mapping[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """Make sure that the run directory is new or belongs to the same run, and that ``cfg.resume`` allows it.

    Args:
        cfg: the run's configuration.
        teacher_sha256: checksum of the teacher's file; None without a teacher.
        data: identity of the stored data it learns from; None if it learns from none.

    Returns:
        The record that its ``run.json`` is to hold, and one line on settings that differ from those so far but may
        (or "").

    Raises:
        ValueError: it holds a run of another configuration or data; the message lists what differs. Or it holds
            weights that cannot be continued and would be overwritten.
    """
    directory = cfg.run_dir
    record = _record_of(cfg, teacher_sha256, data)
    if cfg.resume == "must" and not state_path(directory).exists():
        raise ValueError(f"resume=must, but {directory} has no state.pt to continue from: resume=auto starts a new run")
    if not (directory / "run.json").exists():
        _check_new(directory)
        return record, ""
    if _has_random_seed_steps(directory / "run.json"):
        record["random_seed_steps"] = True
    if cfg.resume == "never":
        raise ValueError(f"resume=never, but {directory} holds a run: set exp_name, or move the directory away")
    differing = _differences(directory / "run.json", record)
    fixed = {"steps"} if ends_with_steps(cfg, teacher_sha256 is not None) else set()
    if refused := {key: text for key, text in differing.items() if key not in CHANGEABLE - fixed}:
        raise _another(cfg, {key: refused[key] for key in _chosen(cfg, directory / "run.json", refused)})
    if (directory / "model.pt").exists() and not state_path(directory).exists():
        raise ValueError(
            f"{directory} has model.pt but no state.pt to continue from: {START_NEW}, "
            "with checkpoint=<that model.pt> if it is to start from those weights"
        )
    return record, f"Continuing with other settings: {'; '.join(differing.values())}" if differing else ""


def ends_with_steps(cfg: Config, taught: bool) -> bool:
    """Tell if a schedule of the run ends at ``steps``: with others, the updates so far would have been others."""
    return cfg.lr_schedule != "constant" or (taught and cfg.distillation_schedule in ("linear", "cosine"))


def _record_of(cfg: Config, teacher_sha256: str | None, data: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the record of a run as it is read back: without keys of a single start, lists in place of tuples."""
    entries = {**cfg.to_dict(), "teacher_sha256": teacher_sha256, "data": data}
    record: dict[str, Any] = json.loads(
        json.dumps({key: value for key, value in entries.items() if key not in ONE_START_KEYS})
    )
    return record


def _has_random_seed_steps(path: Path) -> bool:
    """Tell if a run that starts from a checkpoint is older than fine-tuning, so that its seed steps are random.

    The record goes on saying so, since the next start completes it by the keys that are newer than the run.
    """
    try:
        recorded = read_json(path)
    except ValueError:
        return False  # said when it is compared
    began_older = recorded.get("checkpoint") is not None and recorded.get("mode") == "online"
    return recorded.get("random_seed_steps") is True or (began_older and "freeze" not in recorded)


def _check_new(directory: Path) -> None:
    """Refuse a directory that no run has claimed but that holds files a run would replace."""
    if (directory / "rows.npy").exists():
        raise ValueError(f"{directory} is an episode store: set work_dir to another directory, or leave it out")
    if directory.exists() and any(directory.glob("*.pt")):
        raise ValueError(f"{directory} holds checkpoints but no run.json: {START_NEW} beside it")


def _differences(path: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Compare the record on disk with the one of now: what differs, in words, by key."""
    try:
        recorded = read_record(path)
        older = {"fit_encoder"} - read_json(path).keys()  # it has no effect on what has learned
    except ValueError as error:
        raise ValueError(f"{error}: {START_NEW}") from error
    return {
        key: _difference(key, recorded.get(key), record.get(key))
        for key in sorted((recorded.keys() | record.keys()) - ONE_START_KEYS - _APART - older)
        if recorded.get(key) != record.get(key)
    }


def _chosen(cfg: Config, path: Path, refused: Collection[str]) -> list[str]:
    """Leave out the keys that differ only because others do which they follow: they were not typed.

    All stay where nothing else differs, as between versions with other defaults.
    """
    following = cfg.following() & from_record(read_record(path)).following()
    if {"task", "tasks"} & set(refused):
        following |= {"task_specs"}
    return [key for key in refused if key not in following] or list(refused)


def _another(cfg: Config, refused: Mapping[str, str]) -> ValueError:
    """Say which differences would make another run of the one that is there."""
    data = "data_dir" if cfg.mode == "offline" else "demonstrations"
    texts = [text + (f" [{data}={getattr(cfg, data)}]" if key == "data" else "") for key, text in refused.items()]
    other = "with other data" if refused.keys() == {"data"} else "of another configuration"
    return ValueError(
        f"{cfg.run_dir} holds a run {other} ({'; '.join(texts)}): {START_NEW}, or move the directory away"
    )


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's ``run.json``, completed by the keys that are newer than it.

    Raises:
        ValueError: it is damaged, or a value is not allowed (any more).
    """
    content = check_entries(str(path), read_json(path), RECORD, others=True)
    try:
        return {"teacher_sha256": None, "data": None, **completed(content)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be continued by this version ({cut(str(error))})") from error


def claim(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the ``run.json`` of a run directory.

    Raises:
        ValueError: the disk refused.
    """
    write_text(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def _difference(key: str, recorded: Any, now: Any) -> str:
    """Say how an entry of the record differs."""
    if key == "data" and isinstance(recorded, dict) and isinstance(now, dict):
        return f"data: {describe_other_data(recorded, now)}"
    if key == "data":
        return f"data: {'none' if recorded is None else 'some'} there, {'none' if now is None else 'some'} now"
    return f"{key}: {_brief(recorded)} there, {_brief(now)} now"


def _brief(value: Any) -> str:
    """A value without quotes, as it is typed; cut if it is long."""
    return "null" if value is None else cut(value) if isinstance(value, str) else shown(value, 240)


def share_episodes(data: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell if two identities of stored data have episodes in common, whatever their files are called and lie.

    Equal episodes that were written into other files, such as those of some tasks alone, are not recognised.
    """
    return not set(map(str, data.values())).isdisjoint(map(str, other.values()))


def tells_content(data: Mapping[str, Any]) -> bool:
    """Tell if an identity is of what the data holds; chunk files were once known by their sizes alone."""
    return "checksum" in data or all("-" in str(value) for value in data.values())


def describe_other_data(recorded: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say in words how data differs from the data that a run began with.

    Args:
        recorded: identity of the run's data: a fingerprint by chunk file, or the checksum of an episode store.
        now: that of the present data.
    """
    stores = "checksum" in recorded, "checksum" in now
    if all(stores):
        return "the episode store holds other episodes than the one the run began with"
    if stores[1]:
        return (
            f"the run began with {_count(recorded)}; now there is an episode store that was not imported from exactly "
            "these, or in half precision"
        )
    if stores[0]:
        verb = "is" if len(now) == 1 else "are"
        return f"the run began with an episode store; now there {verb} {_count(now)}, which it was not made from"
    changes = {
        "has other episodes": [name for name in recorded if name in now and recorded[name] != now[name]],
        "is missing": [name for name in recorded if name not in now],
        "is new": [name for name in now if name not in recorded],
    }
    return ", ".join(_files(names, what) for what, names in changes.items() if names)


def _count(files: Mapping[str, str]) -> str:
    return f"{len(files)} chunk file{'' if len(files) == 1 else 's'}"


def _files(names: list[str], what: str) -> str:
    """Name up to three files and what is the matter with them."""
    if len(names) == 1:
        return f"{names[0]} {what}"
    plural = {"has other episodes": "have other episodes", "is missing": "are missing", "is new": "are new"}[what]
    shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} files {plural} ({shown})"
