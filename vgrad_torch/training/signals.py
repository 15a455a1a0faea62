"""Ctrl-C and SIGTERM as a wish to stop, which a loop looks up where it can stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Wish:
    """Inside the block the first Ctrl-C or SIGTERM only sets `number`; a second one acts at once, as usual.

    Outside the main thread, where Python takes no signals, it does nothing.

    >>> with Wish() as wish:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> wish.number == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came, if one did."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Wish:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
