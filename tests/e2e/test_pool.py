"""Real workers with real checkpoints share memory for two: what they hold, who gives way, and that nothing is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.pool.ledger import WORKER_BYTES
from engine.pressure import rss_bytes
from tests import checkpoints
from tests.contract.test_engine_pool import is_alive
from tests.e2e.test_engine_openai import Gateway, start, stop

pytestmark = [pytest.mark.e2e, pytest.mark.mlx, pytest.mark.skipif(sys.platform != "linux", reason="/proc")]

NAMES = ("alpha", "beta", "gamma", "delta")
KV_BYTES = 32 << 20
LIMIT_BYTES = 5 * (WORKER_BYTES + KV_BYTES) // 2


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("models")
    for name, kind in zip(NAMES, ("plain", "hybrid", "windowed", "four bits"), strict=True):
        checkpoints.write(kind, folder / name)
    running = start(
        tmp_path_factory.mktemp("home"),
        DUET_EMBEDDED="false",
        DUET_ENGINE__MODEL_DIRS=str(folder),
        DUET_ENGINE__MEMORY_LIMIT_BYTES=str(LIMIT_BYTES),
        DUET_ENGINE__KV_RAM_BYTES=str(KV_BYTES),
        DUET_ENGINE__MINIMUM_RESIDENCY_SECONDS="1",
        DUET_ENGINE__MEMORY_WAIT_SECONDS="2",
        DUET_ENGINE__RESIDENT="",
    )
    yield running
    stop(running)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {gateway.key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=120, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, model: str, words: str = "hello") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 8, "temperature": 0}
    return client.post("/v1/chat/completions", json=body)


def pool(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/v1/admin/models").json()
    return found


def handles(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def test_the_ledger_is_what_the_process_holds_and_unloading_gives_it_back(
    client: httpx.Client, gateway: Gateway
) -> None:
    place = client.post("/v1/admin/models/alpha/load").json()
    assert ask(client, "alpha").status_code == 200
    deadline = time.monotonic() + 30
    while True:
        place = client.get("/v1/admin/models/alpha/stats").json()
        if place["memory"] is not None and abs(place["memory_bytes"] - rss_bytes(place["pid"])) < 64 << 20:
            break
        assert time.monotonic() < deadline, place
        time.sleep(0.05)  # the worker reports every second at most
    assert place["memory_bytes"] <= place["charged_bytes"] <= place["memory_bytes"] + KV_BYTES
    assert place["charged_bytes"] <= place["estimate_bytes"], "the estimate covers a small model"
    gone = client.post("/v1/admin/models/alpha/unload").json()
    assert (gone["state"], gone["charged_bytes"]) == ("unloaded", 0)
    assert not is_alive(place["pid"])
    assert rss_bytes(place["pid"]) == 0


def test_four_models_in_memory_for_two(client: httpx.Client, gateway: Gateway) -> None:
    pool(client)  # its connection is open
    before = handles(gateway.process.pid)

    def turns(number: int) -> list[tuple[int, str | None]]:
        seen = []
        with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=120, trust_env=False) as own:
            for turn in range(3):
                answer = ask(own, NAMES[(number * 3 + turn) % 4], f"question {number} {turn}")
                seen.append((answer.status_code, answer.json().get("error", {}).get("code")))
                assert answer.status_code == 200 or int(answer.headers["Retry-After"]) > 0
                status = pool(own)
                assert status["charged_bytes"] <= LIMIT_BYTES
        return seen

    with ThreadPoolExecutor(3) as threads:
        seen = {item for items in threads.map(turns, range(3)) for item in items}
    assert seen <= {(200, None), (503, "memory_full")}
    assert (200, None) in seen
    client.post("/v1/admin/models/beta/pin")
    while ask(client, "beta").status_code != 200:  # until the others' minimum residency is over
        continue
    for name in ("alpha", "gamma", "delta"):
        ask(client, name)
    status = {place["id"]: place for place in pool(client)["models"]}
    assert status["beta"]["state"] == "loaded"
    for name in NAMES:
        assert client.post(f"/v1/admin/models/{name}/unload").status_code == 200
    assert pool(client)["charged_bytes"] == 0
    assert gateway.workers() == []
    deadline = time.monotonic() + 10
    while handles(gateway.process.pid) > before:  # connections that clients have closed close here a moment later
        assert time.monotonic() < deadline
        time.sleep(0.05)
