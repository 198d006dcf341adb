"""Start the whole stack for a test, a benchmark or the demo: `duet up --embedded` on free ports, with its own home."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 90.0
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Stack:
    """A running stack. `pid` is the process of `duet up`; all other processes are its descendants."""

    home: Path
    engine_url: str
    router_url: str
    key: str
    pid: int
    log: Path

    def client(self, url: str) -> httpx.Client:
        return httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {self.key}"}, timeout=180.0, trust_env=False
        )


class StackFailed(Exception):
    """The stack did not start. The message ends with the last lines of its log."""


@contextlib.contextmanager
def running(home: Path | None = None) -> Iterator[Stack]:
    """Start the stack, wait until both services are ready, and stop it at the end. A given `home` is kept."""
    with contextlib.ExitStack() as cleanup:
        folder = home or Path(
            cleanup.enter_context(tempfile.TemporaryDirectory(prefix="duet-", ignore_cleanup_errors=True))
        )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine_port, router_port = free_ports(2)
        log = folder / "up.log"
        environment = {name: value for name, value in inherited().items() if not name.startswith("DUET_")}
        environment["DUET_HOME"] = str(folder)
        arguments = ["up", "--embedded", "--engine-port", str(engine_port), "--router-port", str(router_port)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "duet.cli.main", *arguments],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip
        try:
            urls = [f"http://127.0.0.1:{port}" for port in (engine_port, router_port)]
            wait_until_ready(process, urls, log)
            key = (folder / "api_key").read_text().strip()
            yield Stack(folder, urls[0], urls[1], key, process.pid, log)
        finally:
            stop(process)


def free_ports(count: int) -> list[int]:
    """Ports reserved for this process: no other caller of this function on this machine gets them while the process
    lives. They lie below the range from which operating systems assign ports."""
    register = _register()
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        try:
            fcntl.lockf(register, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue  # reserved by another process, or in use
        found.append(port)
        if len(found) == count:
            return found
    raise StackFailed("no port is free")


@functools.cache
def _register() -> int:
    """The lock file, in which each reserved port locks one byte. It stays open, because closing releases the locks."""
    return os.open(
        Path(tempfile.gettempdir()) / f"duet-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )


def inherited() -> dict[str, str]:
    """This process's environment, for its children."""
    return dict(os.environ)  # noqa: TID251 - handed to the child, not read


def wait_until_ready(process: subprocess.Popen[bytes], urls: list[str], log: Path) -> None:
    """Return when all `urls` are ready. Raises `StackFailed` when the process ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    for url in urls:
        while not _ready(f"{url}/ready"):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise StackFailed(f"{url} did not become ready; the log ends:\n{tail}")
            time.sleep(0.1)


def _ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the process. If it does not end in time, send SIGKILL to it and all its descendants."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
