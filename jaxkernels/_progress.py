"""A status line for work that takes longer than a second."""

import sys
import threading
from types import TracebackType


class Progress:
    """A status line on standard error that appears after one second.

    Leaving the context clears the line. Nothing is shown when standard error is not a terminal or
    `enabled` is False.
    """

    def __init__(self, text: str, enabled: bool = True):
        self._text = text
        self._visible = False
        self._lock = threading.Lock()
        self._timer = None
        if enabled and sys.stderr.isatty():
            self._timer = threading.Timer(1.0, self._appear)
            self._timer.daemon = True

    def _appear(self) -> None:
        """Show the line, when the timer is up."""
        with self._lock:
            self._visible = True
            self._draw()

    def _draw(self) -> None:
        """Replace the terminal's current line."""
        sys.stderr.write(f"\r\x1b[2K{self._text}")
        sys.stderr.flush()

    def update(self, text: str) -> None:
        """Replace the text."""
        with self._lock:
            self._text = text
            if self._visible:
                self._draw()

    def __enter__(self) -> "Progress":
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if self._visible:
                self._visible = False
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()
