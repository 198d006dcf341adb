"""Decoding in child processes: what ends, stalls or bloats a child harms nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from duet.errors import DiskFull
from duet.supervise.limits import MEMORY_EXIT, Limits
from speech.decoding import decoder as decoders
from speech.decoding.decoder import Decoder
from speech.decoding.errors import InvalidAudio
from speech.decoding.pcm import open_pcm
from tests import sounds


@asynccontextmanager
async def started(max_seconds: float = 60) -> AsyncIterator[Decoder]:
    decoder = Decoder(max_seconds=max_seconds)
    try:
        yield decoder
    finally:
        await decoder.close()


def tone(path: Path, seconds: float = 1.0) -> Path:
    path.write_bytes(sounds.wav(sounds.pcm(sounds.tone(seconds))))
    return path


def doing(path: Path, what: str) -> Path:
    """A file that makes the fake child do this (`tests.fakes.decoding_child`)."""
    path.write_text(f"DO {what}")
    return path


@pytest.fixture
def fake_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "CHILD", "tests.fakes.decoding_child")


async def test_a_file_is_decoded_and_the_child_is_kept(tmp_path: Path) -> None:
    async with started() as decoder:
        for number in range(3):
            found = await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / f"{number}.pcm")
            assert (found.seconds, found.truncated, found.notes) == (1.0, None, ())
            np.testing.assert_allclose(open_pcm(found.files[0]), np.round(sounds.tone(1.0) * 32767), atol=1)
        assert len(decoder.pids) == 1


@pytest.mark.usefixtures("fake_child")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
async def test_a_file_that_ends_its_child_twice_is_refused(tmp_path: Path, name: str) -> None:
    async with started() as decoder:
        with pytest.raises(InvalidAudio, match=f"did not survive this file .it ended by {name}"):
            await decoder.decode(doing(tmp_path / "deadly", name), tmp_path / "a.pcm")
        assert (await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / "c.pcm")).seconds == 1.0


@pytest.mark.usefixtures("fake_child")
async def test_a_file_that_ends_its_child_harms_no_other(tmp_path: Path) -> None:
    deadly, good = doing(tmp_path / "deadly", "SIGSEGV"), tone(tmp_path / "a.wav")
    async with started() as decoder:
        found = await asyncio.gather(
            *(decoder.decode((good, deadly)[n % 2], tmp_path / f"{n}.pcm") for n in range(12)), return_exceptions=True
        )
    assert [isinstance(one, InvalidAudio) for one in found] == [False, True] * 6


@pytest.mark.usefixtures("fake_child")
async def test_a_file_that_takes_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "MEMORY_BYTES", 300 << 20)
    async with started() as decoder:
        with pytest.raises(InvalidAudio, match="more than 300 MB of memory"):
            await decoder.decode(doing(tmp_path / "large", "bloat"), tmp_path / "a.pcm")
        assert (await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / "c.pcm")).seconds == 1.0


async def test_a_child_that_is_killed_once_from_outside_costs_nothing(tmp_path: Path) -> None:
    async with started() as decoder:
        await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / "a.pcm")
        os.kill(decoder.pids[0], signal.SIGKILL)
        assert (await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / "b.pcm")).seconds == 1.0


@pytest.mark.usefixtures("fake_child")
async def test_a_file_that_takes_too_long_is_refused_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "PATIENCE_SECONDS", 3.0)
    async with started() as decoder:
        stuck = asyncio.create_task(decoder.decode(doing(tmp_path / "slow", "stall"), tmp_path / "a.pcm"))
        await asyncio.sleep(0.1)
        assert (await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / "b.pcm")).seconds == 1.0
        assert not stuck.done()
        with pytest.raises(InvalidAudio, match="could not be decoded in 3 s"):
            await stuck


@pytest.mark.usefixtures("fake_child")
async def test_a_caller_that_leaves_ends_its_work(tmp_path: Path) -> None:
    async with started() as decoder:
        waiting = asyncio.create_task(decoder.decode(doing(tmp_path / "slow", "stall"), tmp_path / "a.pcm"))
        while not decoder.pids:
            await asyncio.sleep(0.05)
        pid = decoder.pids[0]
        waiting.cancel()
        await asyncio.wait([waiting])
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            await asyncio.sleep(0.05)
        assert (await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / "b.pcm")).seconds == 1.0


async def test_more_files_than_children_wait_for_their_turn(tmp_path: Path) -> None:
    async with started() as decoder:
        path = tone(tmp_path / "a.wav")
        found = await asyncio.gather(*(decoder.decode(path, tmp_path / f"{number}.pcm") for number in range(12)))
        assert [one.seconds for one in found] == [1.0] * 12
        assert len(decoder.pids) <= decoders.AT_ONCE


async def test_strict_refuses_what_is_cut(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", seconds=3.0)
    path.write_bytes(path.read_bytes()[:40_000])
    async with started() as decoder:
        found = await decoder.decode(path, tmp_path / "a.pcm")
        assert found.warnings == (found.truncated,)
        with pytest.raises(InvalidAudio, match=r"truncated.* strict=true"):
            await decoder.decode(path, tmp_path / "b.pcm", strict=True)


async def test_progress_is_told_and_may_end_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_LOOK_SECONDS", 0.01)
    path = tone(tmp_path / "a.wav", seconds=600.0)
    seen: list[float] = []
    async with started(3600) as decoder:
        await decoder.decode(path, tmp_path / "a.pcm", on_progress=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == pytest.approx(600.0)

        def stop(_: float) -> None:
            raise StopIteration

        with pytest.raises((StopIteration, RuntimeError)):
            await decoder.decode(path, tmp_path / "b.pcm", on_progress=stop)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_a_full_disk_is_the_servers_trouble(tmp_path: Path) -> None:
    (tmp_path / "decoded.pcm").symlink_to("/dev/full")
    async with started() as decoder:
        with pytest.raises(DiskFull, match=r"cannot be kept .* No space left"):
            await decoder.decode(tone(tmp_path / "a.wav"), tmp_path / "decoded.pcm")


# Limits ---------------------------------------------------------------------------------------------------------------


def limited(code: str, tmp_path: Path, limits: Limits) -> subprocess.CompletedProcess[bytes]:
    (tmp_path / "greedy.py").write_text(code)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-m", *limits.arguments("greedy")],
        env=environment,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_memory_beyond_the_limit_is_refused_or_ends_the_child(tmp_path: Path) -> None:
    limits = Limits(memory_bytes=200 << 20, file_bytes=1 << 20)
    ended = limited("held = bytearray(b'x' * (400 << 20))\nimport time\ntime.sleep(5)", tmp_path, limits)
    assert ended.returncode == MEMORY_EXIT or b"MemoryError" in ended.stderr
    assert limited("held = bytearray(b'x' * (50 << 20))", tmp_path, limits).returncode == 0


def test_a_file_beyond_the_limit_is_an_error_in_the_child(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'large')!r}, 'wb').write(bytes(2 << 20))"
    ended = limited(code, tmp_path, Limits(memory_bytes=1 << 30, file_bytes=1 << 20))
    assert ended.returncode == 1
    assert b"File too large" in ended.stderr


# Channels in an order of their own ------------------------------------------------------------------------------------


def caf(channels: int, layout_tag: int) -> bytes:
    """A second of tone in the last channel, in a CAF file that names its layout."""
    samples = np.zeros((channels, 16_000), np.float32)
    samples[-1] = sounds.tone(1.0)
    data = np.round(samples.T * 32767).astype(">i2").tobytes()
    description = struct.pack(">d4sIIIII", 16_000.0, b"lpcm", 0, 2 * channels, 1, channels, 16)
    return (
        b"caff\x00\x01\x00\x00"
        + (b"desc" + struct.pack(">q", len(description)) + description)
        + (b"chan" + struct.pack(">q", 12) + struct.pack(">III", layout_tag, 0, 0))
        + (b"data" + struct.pack(">q", len(data) + 4) + bytes(4) + data)
    )


@pytest.mark.parametrize(
    ("channels", "tag"),
    [(1, 100 << 16 | 1), (2, 101 << 16 | 2), (6, 121 << 16 | 6), (8, 128 << 16 | 8), (8, 126 << 16 | 8)],
)
async def test_channels_in_an_order_of_their_own_end_no_child(tmp_path: Path, channels: int, tag: int) -> None:
    path = tmp_path / "a.caf"
    path.write_bytes(caf(channels, tag))
    async with started() as decoder:
        found = await decoder.decode(path, tmp_path / "a.pcm")
        np.testing.assert_allclose(open_pcm(found.files[0]), np.round(sounds.tone(1.0) * 32767), atol=2)
