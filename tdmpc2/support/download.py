"""Fetching small public files: within a time limit and within a size."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPException

from tdmpc2.support.text import cut, shown

_BLOCK = 1 << 16


def download(url: str, *, seconds: float = 30.0, most: int = 1 << 23) -> bytes:
    """Fetch a file of the web, all of it or nothing.

    Args:
        url: its address, ``https://`` or ``http://``.
        seconds: time limit of the whole transfer.
        most: bytes that it may have.

    Raises:
        ValueError: no such address, no connection, too slow, too large, or cut short; one line.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{shown(url)} is no address of the web: it must begin with https:// or http://")
    end = time.monotonic() + seconds
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            content = bytearray()
            while block := response.read1(_BLOCK):  # what has arrived, so that a slow server cannot pass the limit
                content += block
                if len(content) > most:
                    raise ValueError(f"{url} has more than {most:,} bytes, which no table of results has")
                if time.monotonic() > end:
                    raise ValueError(f"{url} took more than {seconds:g} s: try again, or fetch it by hand")
            declared = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url} cannot be had: the server says {error.code} {cut(str(error.reason))}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"{url} cannot be had: {cut(str(reason) or type(error).__name__)}") from error
    if declared.isdigit() and int(declared) != len(content):
        raise ValueError(f"{url} was cut short: {len(content):,} of {int(declared):,} bytes arrived; try again")
    return bytes(content)
