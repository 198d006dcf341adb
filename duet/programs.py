"""The programs of Duet: what `duet up` starts, `duet status` asks, and `duet service` installs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from duet.settings import Settings


class Address(NamedTuple):
    """Where a program listens on this machine, and the base URL at which the others reach it."""

    host: str
    port: int
    url: str


@dataclass(frozen=True)
class Program:
    """One long-running program. `after` names those that start before it where a system has an order; none needs one.

    `name` is also its section of the settings where it has an `address`, and part of unit and log names: it is durable.
    """

    name: str
    module: str
    description: str
    after: tuple[str, ...] = ()
    address: Callable[[Settings], Address | None] = lambda _: None

    @property
    def argv(self) -> tuple[str, ...]:
        # -P: a folder named like one of our packages in the working directory must not shadow it.
        return (sys.executable, "-P", "-m", self.module)


PROGRAMS = (
    Program("engine", "engine", "Duet engine", address=lambda s: Address(s.engine.host, s.engine.port, s.engine_url)),
    Program(
        "router",
        "asr_router",
        "Duet ASR router",
        after=("engine",),
        address=lambda s: Address(s.router.host, s.router.port, s.router_url),
    ),
    Program("meetings", "pipelines", "Duet meeting worker", after=("engine",)),
)


def addresses(settings: Settings) -> dict[str, Address]:
    """Of the programs that listen, by name."""
    found = {program.name: program.address(settings) for program in PROGRAMS}
    return {name: address for name, address in found.items() if address is not None}
