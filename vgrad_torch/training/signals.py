"""Turns Ctrl-C and SIGTERM into a flag that the loop checks between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Inside the block the first Ctrl-C or SIGTERM only sets `number`; a second one acts at once, as usual.

    Outside the main thread it does nothing, since Python handles signals in the main thread only.

    >>> with StopSignals() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> signals.number == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The number of the signal that came, or None."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._set_number) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _set_number(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
