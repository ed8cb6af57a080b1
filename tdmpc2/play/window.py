"""Pictures for people who watch: numbers written on a frame, and a window that shows one frame after another.

The window is pygame's: it draws what the environments' own renderer has drawn, so it works for every family, and needs
no OpenGL of its own, of which a process can hardly have two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.support.extras import install_hint, missing_packages

Frame = NDArray[np.uint8]  # [height, width, 3]
_LEAST_SIZE = 384  # smaller frames are enlarged: nobody could read the numbers on them


def captioned(frame: Frame, lines: Sequence[str]) -> Frame:
    """Write lines of text on a dark ground into the upper left corner of a frame.

    Args:
        frame: uint8 [height, width, 3]; one smaller than 384 pixels is enlarged by a whole factor.
        lines: short texts.

    Raises:
        ValueError: Pillow is not installed, or the frame is no picture.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ValueError(f"Numbers on pictures need Pillow: {install_hint('window')}") from error
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"render() returns {frame.dtype} of shape {list(frame.shape)}, not uint8 [height, width, 3]")
    factor = max(1, -(-_LEAST_SIZE // min(frame.shape[:2])))
    image = Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1))
    draw, text = ImageDraw.Draw(image, "RGBA"), "\n".join(lines)
    font = ImageFont.load_default(size=max(14, min(image.size) // 26))
    left, top, right, bottom = draw.multiline_textbbox((8, 6), text, font=font)
    draw.rectangle((left - 5, top - 4, right + 5, bottom + 5), fill=(0, 0, 0, 150))
    draw.multiline_text((8, 6), text, fill=(255, 255, 255), font=font)
    return np.asarray(image)


def why_no_window() -> str:
    """Say why no window can be opened here, or nothing."""
    if missing_packages("window"):
        return f"a window needs pygame: {install_hint('window')}"
    shown = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    remote = sys.platform == "darwin" and os.environ.get("SSH_CONNECTION")
    if (sys.platform.startswith("linux") and not shown) or remote:
        return "there is no display"
    try:
        pygame = _pygame()
        pygame.display.init()
        pygame.display.quit()
    except Exception as error:  # pygame.error, whose class exists only where pygame does
        return f"the display cannot be used [{error}]"
    return ""


class Window:
    """A window that shows frames in real time; Escape, Q or its close button end that, the space bar pauses.

    Args:
        title: of the window.
    """

    def __init__(self, title: str) -> None:
        self._pygame = _pygame()
        self._title = title
        self._surface: Any = None
        self._clock: Any = None

    def __enter__(self) -> Window:
        self._pygame.display.init()
        self._pygame.display.set_caption(self._title)
        self._clock = self._pygame.time.Clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pygame.display.quit()

    def show(self, frame: Frame, fps: float) -> bool:
        """Show a frame and wait until it is time for the next one; returns False once the window was closed."""
        pygame, size = self._pygame, (frame.shape[1], frame.shape[0])
        if self._surface is None or self._surface.get_size() != size:
            self._surface = pygame.display.set_mode(size)
        self._surface.blit(pygame.image.frombuffer(np.ascontiguousarray(frame), size, "RGB"), (0, 0))
        pygame.display.flip()
        going = self._going()
        self._clock.tick(fps)
        return going

    def _going(self) -> bool:
        """Follow keys and the close button; while paused, wait."""
        pygame, paused = self._pygame, False
        while True:
            for event in [pygame.event.wait()] if paused else pygame.event.get():
                key = event.key if event.type == pygame.KEYDOWN else None
                if event.type == pygame.QUIT or key in (pygame.K_ESCAPE, pygame.K_q):
                    return False
                paused ^= key == pygame.K_SPACE
            if not paused:
                return True


def _pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")  # else it draws by OpenGL, beside the renderer's own
    import pygame

    return pygame
