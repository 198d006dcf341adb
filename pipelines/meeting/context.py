"""What every stage is given."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from duet.settings import Settings
from pipelines.meeting.artifacts import Artifacts
from pipelines.meeting.job import JobFolder, Request


class StageEnded(Exception):
    """Raised in a thread whose stage was cancelled and has left it behind: its result is not wanted any more."""


@dataclass
class Context:
    """One stage of one job, running. Progress is written at most a few times a second, from any thread of the stage."""

    settings: Settings
    folder: JobFolder
    request: Request
    artifacts: Artifacts
    _written_at: float = field(default=0.0, repr=False)
    _ended: bool = field(default=False, repr=False)
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def report(self, share: float) -> None:
        """`share` of this stage is done, 0 to 1. Raises `StageEnded` when the stage is over."""
        with self._writing:
            if self._ended:
                raise StageEnded
            now = time.monotonic()
            if now - self._written_at < 0.2 and share < 1:
                return
            self._written_at = now
            progress = self.folder.progress()
            progress.done = min(1.0, share)
            self.folder.write_progress(progress)

    def warn(self, message: str) -> None:
        """Record something that the reader of the outputs must know; the same message only once. Raises `StageEnded` as `report`
        does."""
        with self._writing:
            if self._ended:
                raise StageEnded
            progress = self.folder.progress()
            if message not in progress.warnings:
                progress.warnings.append(message)
                self.folder.write_progress(progress)

    def end(self) -> None:
        """Write nothing from now on: the file belongs to the next run of the stage, or to the next stage."""
        with self._writing:
            self._ended = True
