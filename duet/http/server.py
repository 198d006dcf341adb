"""Listen on a port and serve an application until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from duet.http.protocol import BoundedProtocol

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0


def run_server(app: FastAPI, host: str, port: int, *, log_level: str) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. 1, with the cause and the fix, when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        logger.error(  # noqa: TRY400 - the cause is in the line, a traceback would hide it
            "cannot listen on %s:%d: %s; stop what uses the port or set another one",
            host,
            port,
            error.strerror,
            extra={"action": "port_taken"},
        )
        return 1
    logger.info("listening", extra={"action": "listening", "host": host, "port": listener.getsockname()[1]})
    Server(app, log_level=log_level).run(sockets=[listener])
    return 0


class Server(uvicorn.Server):
    """Sweeps its connections, and ends with our exit code: uvicorn's own server raises SIGTERM again after it has shut down, and
    that kills the process."""

    def __init__(
        self, app: FastAPI, *, log_level: str = "info", protocol: type[BoundedProtocol] = BoundedProtocol
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app, loop="uvloop", http=protocol, ws="none", log_config=None, log_level=log_level,
                access_log=False, server_header=False, timeout_graceful_shutdown=5,
                timeout_keep_alive=protocol.limits.idle_seconds,
            )
        )  # fmt: skip
        self._swept_at = 0.0

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            for connection in list(self.server_state.connections):
                assert isinstance(connection, BoundedProtocol)
                connection.sweep(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()
