"""A line of a notebook that is written over, where a terminal would redraw its last one."""

from __future__ import annotations

from typing import Any


class NotebookLine:
    """One output of a notebook's cell, whose text is always the newest; widgets are not needed."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        """Show a text of one or more lines in place of the last one."""
        from IPython.display import display  # there, where there is a notebook

        content = {"text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
