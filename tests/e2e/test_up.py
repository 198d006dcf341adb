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
import pytest

import models
from duet.testing.stack import Stack, free_ports, running
from tests import sounds

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


@pytest.mark.parametrize("command", ["transcribe", "meeting"])
def test_a_cut_recording_is_said_to_be_one_and_refused_with_strict(stack: Stack, tmp_path: Path, command: str) -> None:
    whole = sounds.wav(sounds.pcm(sounds.tone(3.0)))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole[: len(whole) // 2])
    where = ("--out", str(tmp_path)) if command == "meeting" else ()
    done = duet(stack, command, str(cut), *where)
    assert done.returncode == 0, done.stderr
    assert "note: the file is truncated: 1.5 s of its 3.0 s" in done.stderr
    refused = duet(stack, command, str(cut), "--strict", *where)
    assert refused.returncode == 1
    assert "strict=true refuses that" in refused.stderr


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


def test_a_home_in_use_is_refused_and_that_of_a_killed_one_is_not(tmp_path: Path) -> None:
    home = tmp_path / ("家 a'b#%41?" + "x" * 80)
    with running(home) as stack:
        other = [
            arg
            for name, port in zip(("engine", "router"), free_ports(2), strict=True)
            for arg in (f"--{name}-port", f"{port}")
        ]
        second = duet(stack, "up", "--embedded", *other)
        assert second.returncode == 1
        assert (
            f"is in use by process {stack.pid} (engine on port {stack.engine_url.rpartition(':')[2]}, router on"
            in second.stderr
        )
        for program in ("engine", "asr_router"):
            environment = {
                **os.environ,
                "DUET_HOME": str(home),
                "DUET_ENGINE__PORT": other[1],
                "DUET_ROUTER__PORT": other[3],
            }
            alone = subprocess.run(
                [sys.executable, "-P", "-m", program],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert alone.returncode == 1
            assert "`duet up` uses" in alone.stderr
        assert duet(stack, "transcribe", str(DEMO / "clip_zh.flac")).returncode == 0
        everyone = children(stack.pid)
        os.kill(stack.pid, signal.SIGKILL)
        with running(home) as again:  # at once, while the programs of the first one end
            assert duet(again, "status").returncode == 0
            until_ended(everyone, "of the killed one lives on")


def test_a_program_that_crashes_again_and_again_is_named_by_the_others(tmp_path: Path) -> None:
    with running(tmp_path / "home") as stack:
        deadline = time.monotonic() + 120
        killed: set[int] = set()
        while "resting" not in (ready := httpx.get(f"{stack.router_url}/ready", timeout=5).json()):
            assert time.monotonic() < deadline, stack.log.read_text()
            for pid, command in children(stack.pid).items():
                if command.endswith("-m pipelines") and pid not in killed:
                    os.kill(pid, signal.SIGSEGV)
                    killed.add(pid)
            time.sleep(0.2)
        assert len(killed) == 5
        assert "rests: it was ended by SIGSEGV, 5 times in a row" in ready["resting"]["meetings"]
        assert httpx.get(f"{stack.engine_url}/ready", timeout=5).json()["resting"].keys() == {"meetings"}
        shown = duet(stack, "status")
        assert shown.returncode == 1
        assert "meetings resting" in shown.stdout
        assert "SIGSEGV" in shown.stdout
        assert json.loads(duet(stack, "status", "--json").stdout)["programs"]["meetings"]["state"] == "resting"
        assert duet(stack, "transcribe", str(DEMO / "clip_zh.flac")).returncode == 0


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with running(tmp_path / "home") as stack:
            done = duet(stack, "meeting", str(DEMO / "clip_en.flac"), "--out", str(tmp_path / "out"))
            assert done.returncode == 0, done.stderr
            (stack.home / "up.log").chmod(0o600)  # the test's own
            wide = [path for path in stack.home.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077]
            assert wide == []
            assert stack.home.stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)


def _ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _has_ended(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state or state.startswith("Z")
