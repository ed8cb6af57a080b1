"""Names that come from people, made safe for folders, files and Weights & Biases on every system."""

from __future__ import annotations

import hashlib
import re

#: Letters of a name: what an artifact of Weights & Biases may have, and less than any file system takes.
LONGEST = 128
_FOREIGN = re.compile(r"[^A-Za-z0-9_.-]")
_MARKED = re.compile(r".*--[0-9a-f]{8}", re.DOTALL)  # as a name that was changed ends
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for itself


def safe_name(text: str, limit: int = LONGEST) -> str:
    """Turn any text into a name of letters, digits, ``-``, ``_`` and ``.`` that is no longer than ``limit``.

    A text that is such a name stays as it is. One that is changed gets ``--`` and a hash of the whole, so that two
    texts never share a name.
    """
    clean = _FOREIGN.sub("_", text)
    clean = re.sub(r"^\.+|\.+$", lambda dots: "_" * len(dots[0]), clean)  # hidden, .., and what Windows cuts off
    if _DEVICE.fullmatch(clean):
        clean = f"_{clean}"
    if clean == text and text and len(text) <= limit and not _MARKED.fullmatch(text):
        return text
    mark = f"--{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"{clean[: limit - len(mark)]}{mark}"
