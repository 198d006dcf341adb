"""The supervisor with real processes: children that die, hang and are deaf; programs that crash; parents that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from duet.errors import Unavailable, WorkerLost
from duet.supervise.board import ProgramState, read_board, resting_programs
from duet.supervise.child import Child
from duet.supervise.service import Service
from tests.fakes.answering_child import Answer, Ask

CHILD = "tests.fakes.answering_child"


@pytest.fixture
async def service() -> AsyncIterator[Service[Answer]]:
    found: Service[Answer] = Service(CHILD, (), Answer, name="answering")
    yield found
    await found.close()


def lives(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet waited for does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(shown.strip()) and not shown.startswith("Z")


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


async def test_a_service_starts_at_the_first_call_and_answers_by_id(service: Service[Answer]) -> None:
    assert service.pid is None
    late, prompt = await asyncio.gather(
        service.call(Ask("1", "late"), timeout_seconds=20), service.call(Ask("2"), timeout_seconds=20)
    )
    assert (late.id, prompt.id) == ("1", "2")
    assert late.pid == prompt.pid == service.pid


async def test_a_death_fails_the_open_calls_and_the_next_call_has_a_new_child(service: Service[Answer]) -> None:
    first = await service.call(Ask("1"), timeout_seconds=20)
    with pytest.raises(WorkerLost, match="exit code 3"):
        await asyncio.gather(
            service.call(Ask("2", "hang"), timeout_seconds=20), service.call(Ask("3", "die"), timeout_seconds=20)
        )
    assert (await service.call(Ask("4"), timeout_seconds=20)).pid != first.pid


async def test_a_kill_from_outside_is_noticed_without_a_call(service: Service[Answer]) -> None:
    first = await service.call(Ask("1"), timeout_seconds=20)
    os.kill(first.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while service.pid is not None:
            await asyncio.sleep(0.01)
    assert (await service.call(Ask("2"), timeout_seconds=20)).pid != first.pid


async def test_a_child_that_does_not_answer_in_time_is_killed(service: Service[Answer]) -> None:
    first = await service.call(Ask("1"), timeout_seconds=20)
    with pytest.raises(Unavailable, match="did not answer"):
        await service.call(Ask("2", "hang"), timeout_seconds=0.1)
    assert (await service.call(Ask("3"), timeout_seconds=20)).pid != first.pid
    assert not lives(first.pid)


async def test_a_message_that_was_not_expected_ends_the_child(service: Service[Answer]) -> None:
    with pytest.raises(WorkerLost):
        await service.call(Ask("1", "junk"), timeout_seconds=20)
    assert (await service.call(Ask("2"), timeout_seconds=20)).id == "2"


async def test_stop_ends_even_a_deaf_child() -> None:
    child: Child[Answer] = await Child.start(CHILD, (), Answer, name="deaf")
    await child.channel.send(Ask("1", "stuck"))
    await child.channel.receive()
    assert await child.stop(grace_seconds=0.2) == -signal.SIGKILL


async def test_stop_ends_a_child_that_reads_nothing() -> None:
    child: Child[Answer] = await Child.start(CHILD, (), Answer, name="deaf")
    await child.channel.send(Ask("1", "stuck"))
    await child.channel.receive()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await child.channel.send(Ask("x" * (8 << 20)))
    assert await asyncio.wait_for(child.stop(grace_seconds=0.2), 5) == -signal.SIGKILL
    await asyncio.wait_for(child.channel.close(), 5)


async def test_a_child_ends_with_its_channel() -> None:
    child: Child[Answer] = await Child.start(CHILD, (), Answer, name="polite")
    await child.channel.send(Ask("1"))
    await child.channel.receive()
    await child.channel.close()
    assert await asyncio.wait_for(child.wait(), 20) == 0


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `duet up` with programs of a test; what a failed test leaves is ended. `hangup` is what SIGHUP does in it, which
    under `nohup` is nothing: the test itself may run under `nohup`, so both are set. `home` gets the programs' states; a first
    rest lasts `rest` seconds."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        *programs: str, hangup: signal.Handlers = signal.SIG_DFL, home: Path | None = None, rest: float | None = None
    ) -> subprocess.Popen[str]:
        options = [*(["--home", str(home)] if home else []), *(["--rest", str(rest)] if rest else [])]
        up = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.fakes.up", *options, *programs],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
        )
        started.append(up)
        return up

    yield begin
    for up in started:
        up.terminate()  # in order, so that it ends its programs
        try:
            up.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            up.kill()
            up.communicate()


RUNNING = ProgramState("running")


def board(home: Path) -> dict[str, ProgramState]:
    """Without the count of runs that ended."""
    return {name: msgspec.structs.replace(state, ended=0) for name, state in read_board(home).items()}


def note_and(file: Path, then: str) -> str:
    """Code that writes its process id as one more line of `file`."""
    line = f"import os, sys, time; from pathlib import Path; Path({str(file)!r}).open('a').write(f'{{os.getpid()}}\\n')"
    return f"{line}; {then}"


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_programs_and_the_exit_is_clean(tmp_path: Path, start: Start, name: signal.Signals) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    up = start(*(f"{file.name}={note_and(file, 'time.sleep(600)')}" for file in files))
    wait_until(lambda: all(pids(file) for file in files))
    up.send_signal(name)
    up.communicate(timeout=20)
    assert up.returncode == 0
    assert not any(lives(pid) for file in files for pid in pids(file))


def test_a_program_that_is_killed_is_started_again_and_the_others_go_on(tmp_path: Path, start: Start) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    up = start(*(f"{file.name}={note_and(file, 'time.sleep(600)')}" for file in files))
    wait_until(lambda: all(pids(file) for file in files))
    os.kill(pids(files[0])[0], signal.SIGKILL)
    wait_until(lambda: len(pids(files[0])) == 2)
    assert lives(pids(files[0])[1])
    assert len(pids(files[1])) == 1
    up.terminate()
    up.communicate(timeout=20)


@pytest.mark.parametrize("code", [1, 2, 5, 78, "abort"])
def test_a_program_that_cannot_run_rests_and_the_others_go_on(tmp_path: Path, start: Start, code: int | str) -> None:
    other, bad = tmp_path / "other", tmp_path / "bad"
    ends = "os.abort()" if code == "abort" else f"sys.exit({code})"
    up = start(f"other={note_and(other, 'time.sleep(600)')}", f"bad={note_and(bad, ends)}", home=tmp_path / "home")
    wait_until(lambda: board(tmp_path / "home").get("bad", RUNNING).state == "resting", 30)
    seen = board(tmp_path / "home")
    assert seen["other"] == RUNNING
    assert ("SIGABRT" if code == "abort" else f"exit code {code}") in seen["bad"].why
    assert ("configuration error" in seen["bad"].why) == (code in (2, 78))
    assert 20 <= seen["bad"].again_in_seconds <= 30
    assert len(pids(bad)) == (1 if code in (1, 2, 78) else 5)
    assert "'bad' rests: it " in resting_programs(tmp_path / "home")["bad"]
    wait_until(lambda: len(pids(other)) == 1)  # the bad one may have ended before this one began
    assert lives(pids(other)[0])
    assert up.poll() is None
    up.terminate()
    _, log = up.communicate(timeout=30)
    assert up.returncode == 0
    assert "action=program_rests" in log
    assert "'bad' rests: it " in log
    assert not any(lives(pid) for pid in pids(other))
    assert board(tmp_path / "home") == {}, "who has gone says nothing any more"


def test_a_program_that_rests_is_tried_again_and_may_run(tmp_path: Path, start: Start) -> None:
    other, bad, mended = tmp_path / "other", tmp_path / "bad", tmp_path / "mended"
    then = f"time.sleep(600) if Path({str(mended)!r}).exists() else sys.exit(78)"
    up = start(
        f"other={note_and(other, 'time.sleep(600)')}", f"bad={note_and(bad, then)}", home=tmp_path / "home", rest=0.3
    )
    wait_until(lambda: len(pids(bad)) >= 3)
    mended.touch()
    wait_until(lambda: board(tmp_path / "home").get("bad", RUNNING) == RUNNING and lives(pids(bad)[-1]))
    assert len(pids(other)) == 1
    up.terminate()
    up.communicate(timeout=20)
    assert up.returncode == 0


@pytest.mark.parametrize("codes", [(5,), (78, 78), (1, 5), (2, 1)])
def test_when_nothing_can_run_it_ends_with_a_code_of_theirs(
    tmp_path: Path, start: Start, codes: tuple[int, ...]
) -> None:
    files = [tmp_path / f"crashes{number}" for number in range(len(codes))]
    pairs = zip(files, codes, strict=True)
    up = start(*(f"{file.name}={note_and(file, f'sys.exit({code})')}" for file, code in pairs))
    up.communicate(timeout=30)
    assert up.returncode == codes[0]
    assert [len(pids(file)) for file in files] == [5 if code == 5 else 1 for code in codes]


def test_a_program_that_cannot_be_started_at_all_rests_too(tmp_path: Path, start: Start) -> None:
    other = tmp_path / "other"
    up = start(f"other={note_and(other, 'time.sleep(600)')}", "gone=NO SUCH PROGRAM", home=tmp_path / "home")
    wait_until(lambda: board(tmp_path / "home").get("gone", RUNNING).state == "resting", 30)
    assert "could not be started (No such file or directory)" in board(tmp_path / "home")["gone"].why
    wait_until(lambda: len(pids(other)) == 1)
    assert lives(pids(other)[0])
    up.terminate()
    up.communicate(timeout=20)


WATCHING = "from duet.supervise.lifeline import end_with_parent; end_with_parent(); time.sleep(600)"


@pytest.mark.parametrize(
    ("name", "hangup"),
    [(signal.SIGKILL, signal.SIG_DFL), (signal.SIGKILL, signal.SIG_IGN), (signal.SIGHUP, signal.SIG_DFL)],
)
def test_programs_end_with_a_parent_that_could_not_end_them(
    tmp_path: Path, start: Start, name: signal.Signals, hangup: signal.Handlers
) -> None:
    file = tmp_path / "program"
    up = start(f"program={note_and(file, WATCHING)}", hangup=hangup)
    wait_until(lambda: len(pids(file)) == 1)
    up.send_signal(name)
    up.communicate(timeout=20)
    wait_until(lambda: not lives(pids(file)[0]))


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path, start: Start) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    up = start(*(f"{file.name}={note_and(file, WATCHING)}" for file in files), hangup=signal.SIG_IGN)
    wait_until(lambda: all(pids(file) for file in files))
    first, second = (pids(file)[0] for file in files)
    for pid in (up.pid, first, second):
        os.kill(pid, signal.SIGHUP)
    # `up` still does its work, and what it started lives.
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(pids(files[0])) == 2)
    assert lives(second)
    up.terminate()
    up.communicate(timeout=20)
    assert up.returncode == 0
    assert not any(lives(pid) for file in files for pid in pids(file))
