"""How a program of `duet up` sees that `duet up` is gone: its standard input ends."""

from __future__ import annotations

import os
import signal
import threading
import time

LIFELINE = "DUET_LIFELINE"
"""The environment variable of a program whose standard input stays open while `duet up` lives."""


def is_supervised() -> bool:
    """Whether a `duet up` started this program."""
    return LIFELINE in os.environ


def end_with_parent(grace_seconds: float = 25.0) -> None:
    """Called once by a program at its start. When the `duet up` that started it has gone, the program gets SIGTERM, and is
    ended after `grace_seconds`.

    Normally `duet up` ends its programs itself. This is for a `duet up` that was killed, or whose terminal closed. A
    program that something else started is left alone.
    """
    if is_supervised():
        threading.Thread(target=_end_after_input, args=(grace_seconds,), name="lifeline", daemon=True).start()


def _end_after_input(grace_seconds: float) -> None:
    while os.read(0, 1024):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os._exit(1)  # no parent is left to kill a program that does not end
