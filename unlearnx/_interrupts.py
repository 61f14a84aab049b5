"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the program is. Where that is a finaliser or the callback of a weak reference,
of which imports have many, it is printed as ignored and gone, and the training goes on. The command line remembers that
it was interrupted, and the next step of anything that counts its progress raises it again.
"""

from __future__ import annotations

import signal
from typing import Any

_interrupted = False


def remember() -> None:
    """Remember interrupts from now on; a process that was started to ignore them goes on doing so."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def check() -> None:
    """Raise KeyboardInterrupt if there was an interrupt."""
    if _interrupted:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: Any) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt
