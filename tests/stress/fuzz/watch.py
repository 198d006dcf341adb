"""The processes of a stack while it gets damaged input: which of them ended, and how much memory each took."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from benchmarks.footprint import descends, processes

LOOK_SECONDS = 0.5


@dataclass
class Watch:
    """`limits_megabytes`: the most resident memory of a process, by a word of its command; the first that fits counts."""

    root: int
    limits_megabytes: dict[str, float]
    services: dict[int, str] = field(default_factory=dict)
    most_megabytes: dict[str, float] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Note the programs of `duet up`: none of them may end."""
        self.services = {
            pid: command for pid, (parent, _, command) in processes().items() if parent == self.root and command
        }

    def look(self) -> None:
        table = processes()
        parents = {pid: parent for pid, (parent, _, _) in table.items()}
        for pid, command in list(self.services.items()):
            if pid not in table:
                self.ended.append(f"{command} (pid {pid})")
                del self.services[pid]
        for pid, (parent, megabytes, command) in table.items():
            if not descends(pid, self.root, parents):
                continue
            name = " ".join(command.split()[:1])
            self.most_megabytes[name] = max(self.most_megabytes.get(name, 0.0), round(megabytes, 1))
            limit = next((limit for word, limit in self.limits_megabytes.items() if word in command), None)
            if limit is not None and megabytes > limit:
                self.too_large.append(f"{command} (pid {pid}): {megabytes:.0f} MB of {limit:.0f}")
            if parent == self.root and pid not in self.services:
                self.services[pid] = command

    async def run(self) -> None:
        """Look twice a second until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(LOOK_SECONDS)
