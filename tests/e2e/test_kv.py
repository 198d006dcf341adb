"""The KV cache of a real engine: over restarts and kills, beside another engine, seen by header, metrics and command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.test_engine_openai import Gateway, start, stop

pytestmark = pytest.mark.e2e

HEAD = "The meeting of the platform team is about caches, disks and what they have in common. " * 12


@contextmanager
def engine(home: Path, **settings: str) -> Iterator[Gateway]:
    found = start(home, DUET_ENGINE__KV_FREE_BYTES="0", **settings)
    try:
        yield found
    finally:
        stop(found)


def ask(gateway: Gateway, tail: str, **options: Any) -> tuple[httpx.Response, str, int]:
    """The answer, its text, and the prompt tokens that were restored."""
    body = {"model": "chat", "messages": [{"role": "user", "content": HEAD + tail}], "temperature": 0, "max_tokens": 12}
    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json={**body, **options},
        headers={"Authorization": f"Bearer {gateway.key}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return answer, found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens_details"]["cached_tokens"]


def get(gateway: Gateway, path: str, method: str = "GET") -> httpx.Response:
    return httpx.request(method, gateway.url + path, headers={"Authorization": f"Bearer {gateway.key}"}, timeout=30)


def duet(home: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    port = url.rsplit(":", 1)[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DUET_")}
    environment |= {"DUET_HOME": str(home), "DUET_ENGINE__PORT": port}
    return subprocess.run(
        [sys.executable, "-P", "-m", "duet.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_prefixes_outlive_a_restart_and_say_where_they_came_from(tmp_path: Path) -> None:
    with engine(tmp_path) as first:
        answer, cold, cached = ask(first, "one")
        assert cached == 0
        assert answer.headers["X-Duet-Cache"] == "tokens=0; miss=cold"
        answer, _, cached = ask(first, "two")
        assert cached > 200
        assert answer.headers["X-Duet-Cache"].startswith(f"tokens={cached}; tier=ram; miss=diverged_at({cached}, user)")
        metrics = get(first, "/metrics").text
        assert f'duet_cached_tokens_total{{model="duet-tiny-chat",tier="ram"}} {cached}.0' in metrics
        assert 'duet_kv_lookups_total{miss="cold",model="duet-tiny-chat"} 1.0' in metrics
        assert get(first, "/v1/admin/kv").json()["workers"]["duet-tiny-chat"]["memory_entries"] > 0
    with engine(tmp_path) as second:
        answer, again, cached = ask(second, "one")
        assert again == cold
        assert cached > 200
        assert "tier=ssd" in answer.headers["X-Duet-Cache"]
        with httpx.stream(
            "POST",
            f"{second.url}/v1/chat/completions",
            json={"model": "chat", "stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": HEAD}]},
            headers={"Authorization": f"Bearer {second.key}"},
            timeout=60,
        ) as stream:
            assert stream.headers["X-Duet-Cache"].startswith("tokens=")
            stream.read()
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700


def test_a_killed_worker_loses_no_answer_and_no_file_is_half_written(tmp_path: Path) -> None:
    with engine(tmp_path) as gateway:
        _, expected, _ = ask(gateway, "one")
        for round_ in range(2):  # a third death in a row would make the model rest
            ask(gateway, "one")
            for pid in gateway.workers():
                os.kill(pid, 9)
            until = time.monotonic() + 60
            while True:  # the gateway sees the death in its own time
                try:
                    _, again, _ = ask(gateway, "one")
                    break
                except AssertionError:
                    assert time.monotonic() < until, round_
                    time.sleep(0.2)
            assert again == expected
    verified = duet(tmp_path, gateway.url, "kv", "verify")
    assert verified.returncode == 0, verified.stdout
    assert ", 0 damaged" in verified.stdout


def test_a_second_engine_on_a_home_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with engine(tmp_path) as first:
        _, expected, _ = ask(first, "one")
        with pytest.raises(AssertionError, match="is in use by process"):
            start(tmp_path)
        assert ask(first, "one")[1] == expected
    with engine(tmp_path) as second:
        _, text, cached = ask(second, "one")
        assert text == expected
        assert cached > 200


def test_store_false_leaves_no_trace(tmp_path: Path) -> None:
    with engine(tmp_path) as gateway:
        ask(gateway, "secret", store=False)
        assert ask(gateway, "secret", store=False)[2] == 0
    assert not list(tmp_path.glob("kv/*/files/*/*"))


def test_the_command_shows_and_clears_what_is_kept(tmp_path: Path) -> None:
    with engine(tmp_path) as gateway:
        ask(gateway, "one")
    shown = json.loads(duet(tmp_path, gateway.url, "kv", "stats", "--json").stdout)
    assert shown["directories"][0]["model"] == "duet-tiny-chat"
    assert shown["directories"][0]["entries"] > 0
    assert "duet-tiny-chat" in duet(tmp_path, gateway.url, "kv", "stats").stdout
    file = next(tmp_path.glob("kv/*/files/*/*"))
    file.write_bytes(file.read_bytes()[:-1])
    assert duet(tmp_path, gateway.url, "kv", "verify").returncode == 1
    assert duet(tmp_path, gateway.url, "kv", "clear").stdout.startswith("cleared")
    assert not list(tmp_path.glob("kv/*/files/*/*"))
    with engine(tmp_path) as gateway:
        ask(gateway, "one")
        assert ask(gateway, "one")[2] > 200
        assert get(gateway, "/v1/admin/kv?model=duet-tiny-chat", "DELETE").status_code == 200
        assert ask(gateway, "one")[2] == 0
        assert get(gateway, "/v1/admin/kv?model=nobody", "DELETE").status_code == 404
