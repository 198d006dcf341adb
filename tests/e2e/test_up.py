"""`duet up` and its clients: status, transcription, a meeting, a crash, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import httpx

import models
from duet.testing.stack import Stack, running

DEMO = models.CARDS / "demo"


def duet(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DUET_")}
    environment |= {
        "DUET_HOME": str(stack.home),
        "DUET_ENGINE__PORT": stack.engine_url.rpartition(":")[2],
        "DUET_ROUTER__PORT": stack.router_url.rpartition(":")[2],
    }
    command = [sys.executable, "-P", "-m", "duet.cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def children(pid: int) -> dict[int, str]:
    """All living descendants, by ps."""
    table = subprocess.run(["ps", "-axo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    parents = {
        int(line.split(None, 2)[0]): (int(line.split(None, 2)[1]), line.split(None, 2)[2])
        for line in table.splitlines()
    }
    found: dict[int, str] = {}
    for child, (_, command) in parents.items():
        at = child
        while at in parents and at != pid:
            at = parents[at][0]
        if at == pid and child != pid:
            found[child] = command
    return found


def until_ended(pids: Iterable[int], what: str) -> None:
    deadline = time.monotonic() + 30
    for pid in pids:
        while not _has_ended(pid):
            assert time.monotonic() < deadline, f"{pid} {what}"
            time.sleep(0.1)


def test_status_shows_both_services_and_their_models(stack: Stack) -> None:
    shown = duet(stack, "status")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "duet-tiny-chat" in shown.stdout
    assert "(demonstration)" in shown.stdout
    found = json.loads(duet(stack, "status", "--json").stdout)
    assert found["engine"]["ready"]
    assert found["router"]["ready"]


def test_transcribe_prints_the_text_and_its_route(stack: Stack) -> None:
    done = duet(stack, "transcribe", str(DEMO / "clip_zh.flac"))
    assert done.returncode == 0, done.stderr
    assert "数据库" in done.stdout
    assert "sensevoice: short clip" in done.stderr


def test_meeting_fetches_the_five_outputs(stack: Stack, tmp_path: Path) -> None:
    glossary = tmp_path / "terms.txt"
    glossary.write_text("知识蒸馏\n", encoding="utf-8")
    done = duet(
        stack,
        "meeting",
        str(DEMO / "meeting.flac"),
        "--title",
        "CLI",
        "--glossary",
        str(glossary),
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "reviewed.md", "subtitles.srt", "summary.md", "timeline.json", "transcript.md",
    ]  # fmt: skip


def test_a_crashed_service_comes_back_and_the_end_leaves_nobody(tmp_path: Path) -> None:
    with running(tmp_path / "home") as stack:
        (router,) = [pid for pid, command in children(stack.pid).items() if command.endswith("-m asr_router")]
        os.kill(router, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, stack.log.read_text()
            again = [pid for pid, command in children(stack.pid).items() if command.endswith("-m asr_router")]
            if again and again != [router] and _ready(f"{stack.router_url}/ready"):
                break
            time.sleep(0.1)
        with stack.client(stack.engine_url) as client:  # so that a worker lives too
            body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            client.post("/v1/chat/completions", json=body).raise_for_status()
        everyone = children(stack.pid)
        assert any("engine.worker" in command for command in everyone.values())
    until_ended(everyone, "outlived `duet up`")


def test_workers_end_when_the_gateway_is_killed(tmp_path: Path) -> None:
    with running(tmp_path / "home") as stack:
        with stack.client(stack.engine_url) as client:
            body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            client.post("/v1/chat/completions", json=body).raise_for_status()
        found = children(stack.pid)
        (gateway,) = [pid for pid, command in found.items() if command.endswith("-m engine")]
        workers = [pid for pid, command in found.items() if "engine.worker" in command]  # perhaps a spare one too
        assert workers
        os.kill(gateway, signal.SIGKILL)
        until_ended(workers, "outlived the gateway")


def _ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _has_ended(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state or state.startswith("Z")
