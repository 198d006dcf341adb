"""Streams of chat answers with the time of every token. Lines are parsed afterwards, to keep the client cheap."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.footprint import descends, processes
from benchmarks.kv.client import event_text, read_event
from benchmarks.kv.servers import Server

LINE_LIMIT = 1 << 20


class StreamFailed(Exception):
    """The server answered with an error, or sent no text."""


@dataclass
class Stream:
    """One answer. `begun` is when its request was sent, `times` when each event with text arrived
    (`time.perf_counter()`)."""

    begun: float
    times: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def first_text_seconds(self) -> float:
        return self.times[0] - self.begun

    @property
    def tokens(self) -> int:
        return int(self.usage.get("completion_tokens") or len(self.times))

    @property
    def seconds_a_token(self) -> float:
        """Seconds per token between the first and the last event."""
        return (self.times[-1] - self.times[0]) / (self.tokens - 1)


async def stream(server: Server, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Stream:
    """Send one streamed request on its own connection. Raises `StreamFailed`."""
    content = json.dumps(
        {"model": server.recipe.model, **body, "stream": True, "stream_options": {"include_usage": True}}
    )
    head = {
        "Host": f"127.0.0.1:{server.recipe.port}", "Authorization": f"Bearer {server.recipe.key}",
        "Content-Type": "application/json", "Content-Length": str(len(content.encode())), "Connection": "close",
        **(headers or {}),
    }  # fmt: skip
    request = "POST /v1/chat/completions HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in head.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", server.recipe.port, limit=LINE_LIMIT)
    lines: list[tuple[float, bytes]] = []
    found = Stream(time.perf_counter())
    try:
        writer.write(f"{request}\r\n{content}".encode())
        status = await reader.readline()
        while line := await reader.readline():
            if line.startswith(b"data:"):
                lines.append((time.perf_counter(), line))
    finally:
        writer.close()
    if b" 200 " not in status:
        raise StreamFailed(f"{server.name}: {status.decode().strip()}")
    for moment, line in lines:
        event = read_event(line.decode().strip())
        if event is None:
            continue
        if event.get("error"):
            raise StreamFailed(f"{server.name}: {event['error']}")
        found.usage = event.get("usage") or found.usage
        if event_text(event):
            found.times.append(moment)
    if len(found.times) < 2:
        raise StreamFailed(f"{server.name}: {len(found.times)} events with text")
    return found


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process and its descendants so far; None where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return None
    parents = {child: parent for child, (parent, _, _) in processes().items()}
    ticks = 0
    for child in (pid, *(one for one in parents if one != pid and descends(one, pid, parents))):
        fields = Path(f"/proc/{child}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
