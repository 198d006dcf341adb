"""Stress the pool: four models, memory for two, and clients that request any of them and disconnect at random.

    make stress-pool            (python -m tests.stress.pool --seconds 300 --json FILE)

A real engine serves four random checkpoints; two of them fill its memory limit. Each client requests a random model
with a random length and priority, streamed or not, and abandons one request in five halfway. Every answer must be
clean. Then everything is unloaded, nothing may be left, and the engine's figures are compared with the system's. The
models are tiny: this tests the mechanism, not speed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import msgspec

from benchmarks.footprint import descends, processes
from benchmarks.kv.checkpoints import FOLDER, checkpoint
from benchmarks.kv.client import WORDS
from duet.keys import api_key
from duet.testing.stack import free_ports, inherited, stop, wait_until_ready
from engine.pool.ledger import WORKER_BYTES

RESULT = Path("benchmarks/results/pool.json")
MODELS = {"alpha": "nano", "beta": "nano", "gamma": "hybrid", "delta": "hybrid"}
KV_BYTES = 64 << 20
LIMIT_BYTES = 5 * (WORKER_BYTES + KV_BYTES) // 2
MAX_WAITING_REQUESTS = 7
"""Requests that the engine accepts at once: one fewer than there are clients, so that a 429 occurs too."""
EXPECTED_REFUSALS = frozenset({(503, "memory_full"), (429, "server_busy")})
LEAVE_ONE_IN = 5
NEAR_BYTES = 64 << 20
"""How far a worker's report of its memory may differ from the system's figure."""
GATEWAY_GROWTH_BYTES = 64 << 20
SETTLE_SECONDS = 30.0
PATIENCE_SECONDS = 300.0
"""A request without an answer for this long counts as one that never ends."""
SURPLUS_SECONDS = 15.0
"""How long the ledger may stay above its limit. Models grow after they were admitted, and the ledger charges more than
they hold. Every two seconds the engine checks: it first asks workers to free memory, then unloads idle models. It must
wait for a model in use."""


@dataclass
class Observations:
    """What the clients got, and what the engine reported meanwhile."""

    outcomes: Counter[str] = field(default_factory=Counter)
    unclean: list[str] = field(default_factory=list)
    without_retry_after: int = 0
    most_charged_bytes: int = 0
    most_held_bytes: int = 0
    longest_surplus_seconds: float = 0.0
    looks: int = 0

    def refusal(self, status: int, error: dict[str, Any], retry_after: str | int | None) -> None:
        """Count an error answer, or an error in a stream. `status` is then the one that belongs to the error's code."""
        self.outcomes[f"{status} {error['code']}"] += 1
        if (status, error["code"]) not in EXPECTED_REFUSALS:
            self.unclean.append(f"{status} {error['code']}: {error['message']}")
        elif retry_after is None:
            self.without_retry_after += 1

    def loss(self, error: httpx.HTTPError, body: dict[str, Any], priority: str, seconds: float) -> None:
        """Record an answer that broke off, with the facts that tell causes apart."""
        kind = "streamed" if body["stream"] else "whole"
        self.unclean.append(f"{type(error).__name__} on {body['model']} after {seconds:.1f} s ({kind}, {priority})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the clients send requests")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT, help="write the figures to this file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the engine is stopped on the way out
    with running() as engine:
        print(f"sending requests for {arguments.seconds:.0f} s", flush=True)
        found = asyncio.run(measure(engine, arguments.seconds, arguments.clients, arguments.seed))
    failed = [name for name, passed in found["checks"].items() if not passed]
    record = {
        "machine": platform.machine(),
        "system": platform.system(),
        "versions": {"duet": version("mlx-duet"), "mlx": version("mlx")},
        "settings": {"seconds": arguments.seconds, "clients": arguments.clients, "seed": arguments.seed},
        **found,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    print("failed: " + ", ".join(failed) if failed else "all checks passed")
    return 1 if failed else 0


# The engine -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    url: str
    key: str
    pid: int

    def client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_connections=1)  # makes the number of open handles predictable
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False, limits=limits
        )

    def workers(self) -> dict[int, int]:
        """The engine's descendants by pid, with their resident bytes as the system counts them."""
        table = processes()
        parents = {pid: parent for pid, (parent, _, _) in table.items()}
        return {
            pid: round(megabytes * 1e6)
            for pid, (_, megabytes, _) in table.items()
            if pid != self.pid and descends(pid, self.pid, parents)
        }

    def resident_bytes(self) -> int:
        return round(processes()[self.pid][1] * 1e6)

    def handles(self) -> int:
        """Open files and sockets of the gateway."""
        folder = Path(f"/proc/{self.pid}/fd")
        if folder.exists():
            return len([*folder.iterdir()])
        listed = subprocess.run(["lsof", "-p", str(self.pid)], capture_output=True, text=True, check=False).stdout
        return len(listed.splitlines()) - 1


@contextlib.contextmanager
def running() -> Iterator[Engine]:
    """Start an engine with the four models; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="duet-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        for name, kind in MODELS.items():
            shutil.copytree(checkpoint(kind, FOLDER), root / "models" / name)
        (port,) = free_ports(1)
        settings = {
            "DUET_HOME": str(root / "home"),
            "DUET_ENGINE__PORT": str(port),
            "DUET_ENGINE__HUB": "false",
            "DUET_ENGINE__MODEL_DIRS": str(root / "models"),
            "DUET_ENGINE__RESIDENT": "",
            "DUET_ENGINE__MEMORY_LIMIT_BYTES": str(LIMIT_BYTES),
            "DUET_ENGINE__KV_RAM_BYTES": str(KV_BYTES),
            "DUET_ENGINE__MINIMUM_RESIDENCY_SECONDS": "3",
            "DUET_ENGINE__MEMORY_WAIT_SECONDS": "5",
            "DUET_ENGINE__MAX_WAITING_REQUESTS": str(MAX_WAITING_REQUESTS),
        }
        environment = {name: value for name, value in inherited().items() if not name.startswith("DUET_")} | settings
        (root / "home").mkdir(mode=0o700)
        log = root / "engine.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine"],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip
        try:
            wait_until_ready(process, [f"http://127.0.0.1:{port}"], log)
            yield Engine(f"http://127.0.0.1:{port}", api_key(root / "home"), process.pid)
        finally:
            stop(process)


# The measurement ------------------------------------------------------------------------------------------------------


async def measure(engine: Engine, seconds: float, clients: int, seed: int) -> dict[str, Any]:
    """Load and unload one model, let the clients send requests, unload all models, and compare."""
    async with engine.client() as operator:
        for action in ("load", "unload"):  # the gateway keeps the files and modules that the first model needs
            (await operator.post(f"/v1/admin/models/{next(iter(MODELS))}/{action}")).raise_for_status()
        before = {"handles": engine.handles(), "gateway_bytes": engine.resident_bytes()}
        seen = Observations()
        until = time.monotonic() + seconds
        watching = asyncio.create_task(_watch(operator, seen))
        await asyncio.gather(*(_client(engine, random.Random(seed * 1000 + i), until, seen) for i in range(clients)))
        idle = await _settled(operator)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        ledger = _compare(idle, engine.workers())
        for name in MODELS:
            (await operator.post(f"/v1/admin/models/{name}/unload")).raise_for_status()
        after = (await operator.get("/v1/admin/models")).json()
        left = engine.workers()
        handles = await _handles(engine, before["handles"])
        gateway = engine.resident_bytes()
    places = {place["id"]: place for place in after["models"]}
    return {
        "outcomes": dict(sorted(seen.outcomes.items())),
        "unclean": seen.unclean[:20],
        "limit_bytes": LIMIT_BYTES,
        "most_charged_bytes": seen.most_charged_bytes,
        "most_held_bytes": seen.most_held_bytes,
        "longest_surplus_seconds": round(seen.longest_surplus_seconds, 1),
        "looks": seen.looks,
        "ledger_at_rest": ledger,
        "loads": {name: place["loads"] for name, place in places.items()},
        "unloads": {name: place["unloads"] for name, place in places.items()},
        "crashes": {name: place["crashes"] for name, place in places.items()},
        "gateway_bytes": {"before": before["gateway_bytes"], "after": gateway},
        "handles": {"before": before["handles"], "after": handles},
        "checks": {
            "answers are successes, 503 memory_full or 429": not seen.unclean and seen.outcomes["200"] > 0,
            "every refusal says when to come back": not seen.without_retry_after,
            "models never held more than the limit": seen.most_held_bytes <= LIMIT_BYTES,
            "a book above its limit was answered": seen.longest_surplus_seconds <= SURPLUS_SECONDS,
            "the ledger is what processes hold": all(entry["near"] for entry in ledger.values()),
            "no worker crashed": not any(place["crashes"] for place in places.values()),
            "the ledger ends at zero": after["charged_bytes"] == 0,
            "no process is left": not left,
            "no handle is left": handles <= before["handles"],
            "the gateway has not grown": gateway - before["gateway_bytes"] < GATEWAY_GROWTH_BYTES,
        },
    }


async def _watch(operator: httpx.AsyncClient, seen: Observations) -> None:
    within_at = time.monotonic()
    while True:
        status = (await operator.get("/v1/admin/models")).json()
        if status["charged_bytes"] <= LIMIT_BYTES:
            within_at = time.monotonic()
        seen.longest_surplus_seconds = max(seen.longest_surplus_seconds, time.monotonic() - within_at)
        seen.most_charged_bytes = max(seen.most_charged_bytes, status["charged_bytes"])
        seen.most_held_bytes = max(seen.most_held_bytes, status["held_bytes"])
        seen.looks += 1
        await asyncio.sleep(0.5)


async def _client(engine: Engine, chance: random.Random, until: float, seen: Observations) -> None:
    async with engine.client() as client:
        while time.monotonic() < until:
            body = {
                "model": chance.choice([*MODELS]),
                "messages": [{"role": "user", "content": " ".join(chance.choices(WORDS, k=chance.randint(1, 600)))}],
                "max_tokens": chance.randint(1, 96),
                "stream": chance.random() < 0.6,
                "temperature": chance.choice([0.0, 0.8]),
            }
            priority, asked_at = chance.choice(["interactive", "normal", "batch"]), time.monotonic()
            leaves = chance.uniform(0.05, 3.0) if chance.randrange(LEAVE_ONE_IN) == 0 else None
            try:
                async with asyncio.timeout(leaves):
                    refused = await _ask(client, body, {"X-Duet-Priority": priority}, seen)
            except TimeoutError:
                seen.outcomes["left"] += 1
                continue
            except httpx.HTTPError as error:
                seen.loss(error, body, priority, time.monotonic() - asked_at)
                continue
            if refused:
                await asyncio.sleep(chance.uniform(0.05, 0.5))  # a bad client: it comes back sooner than it was told


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], seen: Observations) -> bool:
    """Send one request and read the whole answer. Returns whether it was refused."""
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        text = (await answer.aread()).decode()
        if answer.status_code != 200:
            seen.refusal(answer.status_code, json.loads(text)["error"], answer.headers.get("Retry-After"))
            return True
    if not body["stream"]:
        seen.outcomes["200"] += 1
        return False
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if events and events[-1] == "[DONE]":
        seen.outcomes["200"] += 1
        return False
    error = msgspec.json.decode(events[-1]).get("error") if events else None
    if error is None:
        seen.unclean.append("a stream ended without its end")
        return False
    # The status was sent before the model was loaded, so the event itself says when to come back.
    seen.refusal({"memory_full": 503, "server_busy": 429}.get(error["code"], 0), error, error.get("retry_after"))
    return True


async def _settled(operator: httpx.AsyncClient) -> dict[str, Any]:
    """The pool's state once nothing runs, waits or loads and all workers have reported their memory."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        status: dict[str, Any] = (await operator.get("/v1/admin/models")).json()
        places = status["models"]
        busy = any(place["running"] or place["waiting"] or place["state"] == "loading" for place in places)
        silent = any(place["state"] == "loaded" and place["memory_bytes"] is None for place in places)
        if not (busy or silent) or time.monotonic() > deadline:
            await asyncio.sleep(1.5)  # for the last report of an idle worker
            return dict((await operator.get("/v1/admin/models")).json())
        await asyncio.sleep(0.2)


def _compare(status: dict[str, Any], real: dict[int, int]) -> dict[str, Any]:
    """For each loaded model, the bytes that the ledger charges, the worker reports and the system counts."""
    found = {}
    for place in status["models"]:
        if place["state"] == "loaded":
            held, resident = place["memory_bytes"] or 0, real.get(place["pid"], 0)
            found[place["id"]] = {
                "charged_bytes": place["charged_bytes"],
                "reported_bytes": held,
                "resident_bytes": resident,
                "near": abs(held - resident) <= NEAR_BYTES and held <= place["charged_bytes"] <= held + KV_BYTES,
            }
    return found


async def _handles(engine: Engine, wanted: int) -> int:
    """The gateway's open handles, after it has closed the connections of clients that left."""
    deadline = time.monotonic() + 10.0
    while (found := engine.handles()) > wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return found


if __name__ == "__main__":
    sys.exit(main())
