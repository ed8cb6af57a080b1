"""Names of files on a hub: ``hf://user/name[@revision][/file]``, downloaded once and then read as any other file.

The hub is Hugging Face's, or whatever ``HF_ENDPOINT`` names. Its client keeps files in its cache, from which they are
read without a connection; ``HF_HUB_OFFLINE=1`` never asks for one. A token is taken from where the client keeps it and
never shown.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tdmpc2.checkpoints import shipped
from tdmpc2.support.extras import install_hint, missing_packages
from tdmpc2.support.text import cut

T = TypeVar("T")

PREFIX = "hf://"
#: Files that are looked for where a name has none, in this order.
FILES = ("model.safetensors", "model.pt")
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_FORM = f"{PREFIX}USER/NAME[@REVISION][/FILE]"


class HubName(NamedTuple):
    """A repository on a hub, and perhaps a revision and a file of it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}{f'/{self.file}' if self.file else ''}"


def is_hub_name(name: str | os.PathLike[str]) -> bool:
    """Tell if something names a file on a hub; as a path it has lost one of its slashes."""
    return re.match(r"hf:/{1,2}", os.fspath(name)) is not None


def parse_name(name: str | os.PathLike[str]) -> HubName:
    """Read a name.

    Raises:
        ValueError: it has another form.
    """
    parts = re.sub(r"^hf:/{1,2}", "", os.fspath(name)).split("/", 2)
    user, rest = parts[0], parts[1] if len(parts) > 1 else ""
    repository, at, revision = rest.partition("@")
    file = parts[2] if len(parts) > 2 else None
    good = _NAME.fullmatch(user) and _NAME.fullmatch(repository) and bool(at) == bool(revision)
    if not good or (file is not None and not all(part.strip(".") for part in file.split("/"))):
        raise ValueError(f"{cut(os.fspath(name), 120)} is no name on a hub: write {_FORM}")
    return HubName(f"{user}/{repository}", revision.replace("%2F", "/") or None, file)


def as_typed(name: str | os.PathLike[str]) -> str:
    """Write the name of a file as it was typed: one on a hub has its two slashes again."""
    return re.sub(r"^hf:/{1,2}", PREFIX, os.fspath(name))


def is_path(name: str | os.PathLike[str]) -> bool:
    """Tell if something names a file by its path: nothing is written beside one on a hub or one of the project's."""
    return not is_hub_name(name) and shipped.find(name) is None


def local_file(name: str | os.PathLike[str]) -> Path:
    """Find a file on this machine: a path, the name of a model that comes with the project, or that of a file on a hub.

    What is on a hub is downloaded unless the cache has it.

    Raises:
        ValueError: a file on a hub cannot be had; one line says why.
    """
    if not is_hub_name(name):
        return shipped.find(name) or Path(name).expanduser()
    wanted = parse_name(name)
    if wanted.file is not None:
        return _download(wanted)
    unknown: NotHereError | None = None  # without a connection it is not known which files there are
    for file in FILES:
        try:
            return _download(wanted._replace(file=file))
        except NoSuchFileError:
            continue
        except NotHereError as error:
            unknown = unknown or error
    if unknown is not None:
        raise unknown
    raise ValueError(f"{wanted} has none of the files {', '.join(FILES)}: name one, {wanted}/FILE")


def why_missing(name: str | os.PathLike[str] | None) -> str:
    """Say why a file cannot be read, such as ``does not exist``; nothing if it is there, or was downloaded."""
    try:
        return "" if name is not None and local_file(name).exists() else "does not exist"
    except ValueError as error:
        return f"cannot be had: {error}"


class NoSuchFileError(ValueError):
    """A repository on a hub does not have a file."""


class NotHereError(ValueError):
    """There is no connection to a hub, and a file was never downloaded."""


def _download(wanted: HubName) -> Path:
    def download(client: Any) -> str:
        return str(client.hf_hub_download(wanted.repository, wanted.file, revision=wanted.revision))

    return Path(ask(str(wanted), download))


def ask(name: str, question: Callable[[Any], T]) -> T:
    """Ask a hub something.

    Args:
        name: what is asked for, for messages.
        question: is given the client, the package ``huggingface_hub``.

    Raises:
        NoSuchFileError: the repository does not have the file.
        NotHereError: there is no connection, and the file was not downloaded before.
        ValueError: the package or the repository is missing, or the hub cannot be reached or refuses; in one line.
    """
    if missing_packages("hub"):
        raise ValueError(f"{name} is on a hub, whose client is not installed: {install_hint('hub')}")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return question(huggingface_hub)
    except errors.LocalEntryNotFoundError as error:
        raise NotHereError(f"{name}: no connection to {_endpoint()}, and it was never downloaded here") from error
    except errors.GatedRepoError as error:
        raise ValueError(f"{name}: its owner gives access on request only; ask there, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: {_endpoint()} has no such repository, or it is private and needs a login (`hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: the repository has no such revision") from error
    except errors.EntryNotFoundError as error:
        raise NoSuchFileError(f"{name}: the repository has no such file") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = ": log in with a token that may write (`hf auth login`)" if status in (401, 403) else ""
        raise ValueError(f"{name}: {_endpoint()} refused, HTTP status {status}{advice}") from error
    except errors.OfflineModeIsEnabled as error:
        raise ValueError(f"{name}: HF_HUB_OFFLINE forbids to ask {_endpoint()}") from error
    except Exception as error:  # of the client, of what it is built on, of the network, or of the disk
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise ValueError(f"{name} cannot be kept in {error.filename or 'the cache'}: {error.strerror}") from error
        raise ValueError(f"{name}: {_endpoint()} cannot be asked ({type(error).__name__})") from error


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
