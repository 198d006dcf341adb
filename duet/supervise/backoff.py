"""When a process that ended is started again."""

from __future__ import annotations

from dataclasses import dataclass

HEALTHY_SECONDS = 60.0
"""A process that lived this long starts its back-off anew."""
QUICK_SECONDS = 10.0
"""A program whose first run ends sooner, with exit code 1, has said why it cannot start."""
CRASHES_IN_A_ROW = 5
"""After this many a program rests."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 30.0, 600.0
EXIT_FINAL = frozenset({2, 78})
"""Exit codes after which a restart would fail the same way, until somebody mends it: usage and configuration errors."""


def restart_delay_seconds(failures_in_a_row: int) -> float:
    """Exponential back-off: 0 at first, then 0.5, 1, 2 … at most 30."""
    return 0.0 if failures_in_a_row <= 1 else float(min(30.0, 0.5 * 2 ** (failures_in_a_row - 2)))


def rest_seconds(rests_in_a_row: int) -> float:
    """How long a program rests: 30 s, then 60, 120 … at most 600. A rest is never the end: what was wrong may be mended."""
    return float(min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2 ** (min(rests_in_a_row, 20) - 1)))


@dataclass
class Endings:
    """How the runs of one program ended, and what follows from that."""

    runs: int = 0
    failures: int = 0
    """In a row: a run of `HEALTHY_SECONDS` starts anew."""
    rests: int = 0
    never_ran: bool = True
    """No run has lasted for `QUICK_SECONDS` yet."""

    def add(self, code: int, lived_seconds: float) -> float:
        """Note one more run. Returns how long to wait before the next; `resting` says whether that is a rest."""
        self.runs += 1
        self.never_ran = self.never_ran and lived_seconds < QUICK_SECONDS
        if lived_seconds >= HEALTHY_SECONDS:
            self.failures = self.rests = 0
        self.failures += 1
        cannot_start = self.runs == 1 and code == 1 and lived_seconds < QUICK_SECONDS
        if code in EXIT_FINAL or cannot_start or self.failures >= CRASHES_IN_A_ROW or self.rests:
            self.rests += 1
            return rest_seconds(self.rests)
        return restart_delay_seconds(self.failures)

    @property
    def resting(self) -> bool:
        return self.rests > 0
