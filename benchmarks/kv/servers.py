"""The servers that are measured, as real processes: ours, `mlx_vlm.server` and `mlx_lm.server`.

Each has its own home and a free port, and on Linux runs on one core. The other servers come from PyPI and have an
environment of their own (`make bench-kv`, benchmarks/peers.txt). Their cache options are set to keep as much as
possible.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from duet.keys import api_key
from duet.testing.stack import free_ports

PEERS = Path("build/bench/venv")
START_SECONDS, STOP_SECONDS = 120.0, 30.0
# Environment variables with these prefixes would change a measurement, so no server inherits them.
_FOREIGN = ("DUET_", "APC_", "MLX_", "HF_", "KV_", "XDG_")


@dataclass(frozen=True)
class Budget:
    """How many bytes of prompts a server may keep."""

    ram_bytes: int
    disk_bytes: int = 20 << 30


NO_CACHE = Budget(0, 0)
"""Every prompt is answered as if the server had never seen it."""
ROOMY = Budget(1 << 30)


@dataclass(frozen=True)
class Recipe:
    """How to start a server. It listens on `port`, calls its model `model`, and keeps prompts on disk below `cache`
    (None if it cannot). `options` repeats the cache options from the arguments and the environment, for the record.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    port: int
    model: str
    ready_path: str
    cache: Path | None
    options: Mapping[str, str]
    key: str = "none"


Maker = Callable[[Path, Path, Budget, Path], Recipe]
"""Makes a recipe from a home, a checkpoint, a budget and the environment of the other servers."""


def _duet(home: Path, checkpoint: Path, budget: Budget, peers: Path, *, python: str | Path = sys.executable) -> Recipe:
    (port,) = free_ports(1)
    options = {
        "DUET_ENGINE__KV_RAM_BYTES": str(budget.ram_bytes),
        "DUET_ENGINE__KV_DISK_BYTES": str(budget.disk_bytes),
    }
    environment = {
        **options,
        "DUET_HOME": str(home),
        "DUET_ENGINE__PORT": str(port),
        "DUET_ENGINE__HUB": "false",
        "DUET_ENGINE__MODEL_DIRS": str(checkpoint.parent),
    }
    arguments = [str(python), "-P", "-m", "engine"]
    cache = home / "kv"
    return Recipe(arguments, environment, port, checkpoint.name, "/ready", cache, options, api_key(home))


def _mlx_vlm(home: Path, checkpoint: Path, budget: Budget, peers: Path) -> Recipe:
    """Automatic prefix caching with its disk tier. Hybrid models get more checkpoints, closer together, than by default
    (2 entries, every 2,048 tokens). It may read from disk however little memory is free."""
    (port,) = free_ports(1)
    cache = home / "apc"
    options = {"APC_ENABLED": "0"}
    if budget != NO_CACHE:
        options = {
            "APC_ENABLED": "1",
            "APC_DISK_PATH": str(cache),
            "APC_DISK_MAX_GB": str(budget.disk_bytes / (1 << 30)),
            "APC_MEMORY_MAX_GB": str(budget.ram_bytes / (1 << 30)),
            "APC_NUM_BLOCKS": "16384",
            "APC_CHECKPOINT_ENTRIES": "64",
            "APC_CHECKPOINT_INTERVAL_TOKENS": "256",
            "APC_DISK_MIN_FREE_RAM_GB": "0",
        }
    arguments = [
        str(_python(peers)), "-P", "-m", "mlx_vlm.server", "--model", str(checkpoint), "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip
    environment = {**options, "MLX_VLM_CACHE_HOME": str(home / "mlx-vlm")}
    return Recipe(arguments, environment, port, str(checkpoint), "/v1/models", cache, _named(options, home))


def _mlx_lm(home: Path, checkpoint: Path, budget: Budget, peers: Path) -> Recipe:
    """Its prompt cache is in memory only. It gets more entries than by default (10)."""
    (port,) = free_ports(1)
    options = {"--prompt-cache-size": "256", "--prompt-cache-bytes": str(budget.ram_bytes)}
    if budget == NO_CACHE:
        options = {"--prompt-cache-size": "0"}
    arguments = [
        str(_python(peers)), "-P", "-m", "mlx_lm", "server", "--model", str(checkpoint), "--host", "127.0.0.1",
        "--port", str(port), *(part for option in options.items() for part in option),
    ]  # fmt: skip
    return Recipe(arguments, {}, port, str(checkpoint), "/v1/models", None, options)


MAKERS: dict[str, Maker] = {"duet": _duet, "mlx_vlm": _mlx_vlm, "mlx_lm": _mlx_lm}


def maker(name: str) -> Maker:
    """The maker of a server. `duet@CHECKOUT` is our engine from another checkout that has its environment: with it, one
    run compares before and after a change."""
    kind, _, checkout = name.partition("@")
    if not checkout:
        return MAKERS[kind]
    python = Path(checkout).absolute() / ".venv" / "bin" / "python"
    if kind != "duet" or not python.exists():
        raise ServerFailed(f"{name}: {python} is not there: run `make .venv/.ready` in that checkout")
    return partial(_duet, python=python)


def label(name: str) -> str:
    """A server's name in a record. Another checkout is named by its commit, not by a path of this machine."""
    kind, _, checkout = name.partition("@")
    if not checkout:
        return kind
    asked = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
    return f"{kind}@{subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()}"


class ServerFailed(Exception):
    """A server did not start. The message ends with the last lines of its log."""


@dataclass
class Server:
    """One server. It runs inside a `with` block. `restart` keeps its home and therefore its disk cache."""

    name: str
    home: Path
    checkpoint: Path
    budget: Budget
    peers: Path = PEERS
    core: int | None = 0
    recipe: Recipe = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.recipe = maker(self.name)(self.home, self.checkpoint, self.budget, self.peers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.recipe.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.stop()  # `__exit__` does not run after an interrupted start
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> float:
        """Start the server and wait until it answers. Returns the seconds it took. Raises `ServerFailed`."""
        begun = time.monotonic()
        with self.log.open("ab") as output:
            self._process = self._spawn(output)
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                raise ServerFailed(f"{self.name} did not become ready; its log ends:\n{tail}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def _spawn(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in _environment().items() if not name.startswith(_FOREIGN)}
        own = {"HOME": str(self.home), "HF_HUB_OFFLINE": "1", **self.recipe.environment}
        return subprocess.Popen(
            [*pinning(self.core), *self.recipe.arguments], cwd=self.home, env={**inherited, **own}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def _ready(self) -> bool:
        headers = {"Authorization": f"Bearer {self.recipe.key}"}
        try:
            answer = httpx.get(self.url + self.recipe.ready_path, headers=headers, timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def stop(self) -> None:
        """Send SIGTERM, as an operator does, so that the server can write its cache. After the deadline kill its group."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{self.name} had to be killed after {STOP_SECONDS:.0f} s", file=sys.stderr)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def restart(self) -> float:
        self.stop()
        return self.start()


def pinning(core: int | None) -> list[str]:
    """The prefix of a command that keeps it on one core; empty where there is no `taskset`, as on macOS."""
    return ["taskset", "-c", str(core)] if core is not None and shutil.which("taskset") else []


def _python(peers: Path) -> Path:
    python = peers.absolute() / "bin" / "python"
    if not python.exists():
        raise ServerFailed(f"{python} is not there: `make bench-kv` makes the environment of the other servers")
    return python


def _named(options: Mapping[str, str], home: Path) -> dict[str, str]:
    """Options with a placeholder for the home, which is deleted after the run."""
    return {name: value.replace(str(home), "<home>") for name, value in options.items()}


def _environment() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251 - handed to the child, not read
