"""One transcription in the router, from spooled file to transcript."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_router.routing import Wish
from asr_router.transcribing import Transcriber
from duet.errors import Unavailable
from speech.recognisers.port import Options
from tests import sounds


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_a_full_disk_while_decoding_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(sounds.wav(sounds.pcm(sounds.tone(2.0))))
    path.with_name("decoded.pcm").symlink_to("/dev/full")
    with pytest.raises(Unavailable, match="No space left"):
        await Transcriber([], max_audio_seconds=60).transcribe(path, Wish(), Options())
