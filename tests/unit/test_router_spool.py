"""Uploads on disk: private, bounded, gone afterwards."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from asr_router.routing import Wish
from asr_router.spool import Spool
from asr_router.transcribing import Transcriber
from duet.errors import PayloadTooLarge, Unavailable
from speech.decode import InvalidAudio
from speech.recognisers.port import Options
from tests import sounds


class Upload:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    async def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tmp" / "router"


@pytest.fixture
def spool(folder: Path) -> Spool:
    spool = Spool(folder, max_bytes=3 << 20)
    spool.open()
    return spool


async def test_an_upload_is_a_private_file_while_the_block_runs(spool: Spool, folder: Path) -> None:
    data = bytes(range(256)) * 8192  # more than one piece
    async with spool.take(Upload(data)) as path:
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        path.with_name("decoded.pcm").write_bytes(b"beside it")
    assert list(folder.iterdir()) == []


async def test_an_upload_goes_when_the_block_fails(spool: Spool, folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with spool.take(Upload(b"x")):
            raise ZeroDivisionError
    assert list(folder.iterdir()) == []


async def test_two_uploads_do_not_meet(spool: Spool) -> None:
    async with spool.take(Upload(b"one")) as one, spool.take(Upload(b"two")) as two:
        assert (one.read_bytes(), two.read_bytes()) == (b"one", b"two")
        assert one.parent != two.parent


async def test_the_bound_is_exact_and_leaves_nothing(spool: Spool, folder: Path) -> None:
    async with spool.take(Upload(b"x" * (3 << 20))) as path:
        assert path.stat().st_size == 3 << 20
    with pytest.raises(PayloadTooLarge) as raised:
        async with spool.take(Upload(b"x" * ((3 << 20) + 1))):
            pytest.fail("taken")
    assert raised.value.param == "file"
    assert list(folder.iterdir()) == []


async def test_an_empty_upload_is_refused(spool: Spool, folder: Path) -> None:
    with pytest.raises(InvalidAudio):
        async with spool.take(Upload(b"")):
            pytest.fail("taken")
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_swept_at_start(spool: Spool, folder: Path) -> None:
    stale = folder / "0123" / "upload"
    stale.parent.mkdir()
    stale.write_bytes(b"private")
    spool.open()
    assert list(folder.iterdir()) == []


async def test_a_disk_that_takes_nothing_is_unavailable(spool: Spool, folder: Path) -> None:
    folder.rmdir()
    with pytest.raises(Unavailable, match="cannot be kept on disk"):
        async with spool.take(Upload(b"x")):
            pytest.fail("taken")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_a_full_disk_while_decoding_is_unavailable(spool: Spool, folder: Path) -> None:
    transcriber = Transcriber([], max_audio_seconds=60)
    async with spool.take(Upload(sounds.wav(sounds.pcm(sounds.tone(2.0))))) as path:
        path.with_name("decoded.pcm").symlink_to("/dev/full")
        with pytest.raises(Unavailable, match="No space left"):
            await transcriber.transcribe(path, Wish(), Options())
