"""Listen on a port and serve an application until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

logger = logging.getLogger(__name__)


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
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_config=None, log_level=log_level, access_log=False,
        server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    logger.info("listening", extra={"action": "listening", "host": host, "port": listener.getsockname()[1]})
    _Server(config).run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """Ends with our exit code. uvicorn's own server raises SIGTERM again after it has shut down, and that kills the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()
