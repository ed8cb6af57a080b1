"""Files of public results, fetched once, with their checksums: ``checksums.json`` beside them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tdmpc2.studies.sources import SITE, SOURCES
from tdmpc2.support.download import download
from tdmpc2.support.files import json_text, read_json, replacing, write_text
from tdmpc2.support.reading import read_bytes
from tdmpc2.support.text import shown

NAME = "checksums.json"


def fetch_all(folder: Path, site: str = SITE, say: Callable[[str], None] = print, seconds: float = 30.0) -> list[str]:
    """Fetch every file of every source that is not there yet; one that cannot be had is told, and the others go on.

    Args:
        folder: where the files go, under the name of their repository.
        site: address that the files are below.
        say: told what cannot be had; after the first failure of a repository its other files are not tried.
        seconds: time limit of each file.

    Returns:
        The names of the files that were fetched.

    Raises:
        ValueError: the record of checksums is damaged, or a file is no longer what was fetched.
    """
    sums, fetched = dict(recorded(folder)), []
    failed: set[str] = set()
    wanted = {
        name: (source.origin, url)
        for source in SOURCES
        for reading in source.readings
        for name, url in reading.files().items()
        if url
    }
    for name, (origin, url) in wanted.items():
        if origin in failed or (folder / name).exists():
            continue
        try:
            content = download(f"{site.rstrip('/')}/{url}", seconds=seconds)
            sums[name] = hashlib.sha256(content).hexdigest()
            write_text(folder / NAME, json_text(sums, indent=1) + "\n")  # first: a kill leaves no file without checksum
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        except ValueError as error:
            failed.add(origin)
            say(f"{origin}: {error}")
            continue
        fetched.append(name)
    return fetched


def recorded(folder: Path) -> dict[str, str]:
    """Read name -> SHA-256 of the downloaded files, after comparing those that are there with it.

    Raises:
        ValueError: the record is damaged, or a file is no longer what was fetched.
    """
    sums = read_json(folder / NAME, absent={})
    for name, digest in sums.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise ValueError(f"{folder / NAME} is damaged: {shown(name)} is no name with a SHA-256; delete it")
        file = folder / name
        if file.is_file() and hashlib.sha256(read_bytes(file)).hexdigest() != digest:
            raise ValueError(f"{file} is not the file that was fetched: delete it, and download again")
    return sums
