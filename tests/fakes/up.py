"""`duet up` with programs of a test: `python -m tests.fakes.up NAME=CODE…` runs each CODE with `python -c`, restarting it."""

from __future__ import annotations

import asyncio
import sys

from duet.supervise.programs import Supervised, run_programs


def program(argument: str) -> Supervised:
    name, _, code = argument.partition("=")
    return Supervised(name, (sys.executable, "-P", "-c", code), {"DUET_PROGRAM": name})


if __name__ == "__main__":
    sys.exit(asyncio.run(run_programs([program(argument) for argument in sys.argv[1:]])))
