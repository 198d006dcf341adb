"""How a program of `duet up` sees that `duet up` is gone: its standard input ends."""

from __future__ import annotations

import os
import signal
import threading
import time

LIFELINE = "DUET_LIFELINE"
"""Set for a program whose standard input stays open as long as `duet up` lives."""


def end_with_parent(grace_seconds: float = 25.0) -> None:
    """Called once by a program at its start: it ends, as SIGTERM ends it, when the `duet up` that started it is gone.

    `duet up` ends its programs itself; this is for when it was killed, or its terminal closed. A program started by
    anything else is left alone.
    """
    if LIFELINE in os.environ:
        threading.Thread(target=_end_after_input, args=(grace_seconds,), name="lifeline", daemon=True).start()


def _end_after_input(grace_seconds: float) -> None:
    while os.read(0, 1024):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os._exit(1)  # nobody is left to kill what does not end
