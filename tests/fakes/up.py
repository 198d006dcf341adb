"""`duet up` with programs of a test: `python -m tests.fakes.up [--home H] [--rest S] NAME=CODE…` runs each CODE with
`python -c`, restarting it. The CODE `NO SUCH PROGRAM` is none."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from duet.claims import UP, claim
from duet.logs import configure_logs
from duet.supervise import backoff
from duet.supervise.board import Board
from duet.supervise.programs import Supervised, run_programs


def program(argument: str) -> Supervised:
    name, _, code = argument.partition("=")
    argv = ("/no/such/program",) if code == "NO SUCH PROGRAM" else (sys.executable, "-P", "-c", code)
    return Supervised(name, argv, {"DUET_PROGRAM": name})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path)
    parser.add_argument("--rest", type=float)
    parser.add_argument("programs", nargs="+")
    arguments = parser.parse_args()
    configure_logs("info", "up")
    if arguments.rest:
        backoff.FIRST_REST_SECONDS = arguments.rest
    if arguments.home:
        claim(arguments.home, UP, {})
    programs = [program(argument) for argument in arguments.programs]
    return asyncio.run(run_programs(programs, board=Board(arguments.home)))


if __name__ == "__main__":
    sys.exit(main())
