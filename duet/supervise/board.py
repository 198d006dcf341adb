"""How the programs of `duet up` are, for those that ask: written by `duet up`, read by the services and by `duet status`."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from duet.claims import FOLDER, UP, holder
from duet.home import own_folder

logger = logging.getLogger(__name__)

FILE: Final = "programs.json"


class ProgramState(msgspec.Struct, frozen=True):
    """`why` says how the last run ended; "" if none has. `again_at` (seconds since the epoch) is the next try of a program that
    rests."""

    state: Literal["running", "starting", "resting"]
    why: str = ""
    again_at: float = 0.0
    ended: int = 0
    """How many runs have ended."""

    @property
    def again_in_seconds(self) -> int:
        return max(0, round(self.again_at - time.time()))


def resting(name: str, state: ProgramState) -> str:
    """The sentence for people about a program that rests."""
    return (
        f"the program {name!r} rests: {state.why}; it is tried again in {state.again_in_seconds} s; the log says more"
    )


class Board:
    """The states of all programs; each change goes to `$DUET_HOME/run/programs.json`. Without a home it goes nowhere."""

    def __init__(self, home: Path | None = None) -> None:
        self._home = home
        self.states: dict[str, ProgramState] = {}

    def set(self, name: str, state: ProgramState) -> None:
        self.states[name] = state
        if self._home is None:
            return
        try:
            path = own_folder(self._home, FOLDER) / FILE
            half = path.with_name(f".{FILE}")
            half.write_bytes(msgspec.json.encode(self.states))
            half.replace(path)
        except OSError as error:  # a full or read-only disk: the log still says it
            logger.warning("the programs' states cannot be written: %s", error, extra={"action": "board_failed"})


def read_board(home: Path) -> dict[str, ProgramState]:
    """The states that a living `duet up` wrote; empty when none lives or nothing can be read."""
    if holder(home, UP) is None:
        return {}
    try:
        return msgspec.json.decode((home / FOLDER / FILE).read_bytes(), type=dict[str, ProgramState])
    except (OSError, msgspec.DecodeError):
        return {}


def resting_programs(home: Path) -> dict[str, str]:
    """The programs that rest, with the sentence for people."""
    return {name: resting(name, state) for name, state in read_board(home).items() if state.state == "resting"}
