"""A recording is not even decoded when there is no place for its request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from speech.decoding.decoder import Decoded
from tests.fakes.engine_service import EngineService, chat_body, engine_service, model_folder
from tests.sounds import pcm, tone, wav


class FakeDecoder:
    """In the place of the children that decode: counts, and waits for `go`."""

    def __init__(self) -> None:
        self.calls, self.go = 0, asyncio.Event()

    async def decode(self, path: Path, target: Path, **_: Any) -> Decoded:
        self.calls += 1
        await asyncio.wait_for(self.go.wait(), 60)
        target.write_bytes(bytes(3200))
        return Decoded(0.1, (target,), None, ())

    async def close(self) -> None:
        return


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> FakeDecoder:
    """Before `engine`, which makes its decoder."""
    found = FakeDecoder()
    monkeypatch.setattr("engine.api.modalities.transcriptions.Decoder", lambda **_: found)
    return found


@pytest.fixture
async def engine(tmp_path: Path, decoder: FakeDecoder) -> AsyncIterator[EngineService]:
    """Takes one request at once."""
    model_folder(tmp_path / "models", "talker")
    model_folder(tmp_path / "models", "listener", capabilities=["asr"])
    async with engine_service(tmp_path, tmp_path / "models", max_waiting_requests=1) as service:
        yield service


async def transcribe(engine: EngineService) -> httpx.Response:
    clip = {"file": ("clip.wav", wav(pcm(tone(0.1))))}
    return await engine.client.post("/v1/audio/transcriptions", data={"model": "listener"}, files=clip)


async def test_a_request_under_way_takes_the_place(engine: EngineService, decoder: FakeDecoder) -> None:
    decoder.go.set()
    async with engine.client.stream("POST", "/v1/chat/completions", json=chat_body("forever", stream=True)) as busy:
        assert busy.status_code == 200
        refused = await transcribe(engine)
    assert (refused.status_code, refused.json()["error"]["code"], decoder.calls) == (429, "server_busy", 0)


async def test_a_recording_that_is_being_decoded_takes_the_place(engine: EngineService, decoder: FakeDecoder) -> None:
    first = asyncio.create_task(transcribe(engine))
    async with asyncio.timeout(30):
        while not decoder.calls:
            await asyncio.sleep(0.01)
        assert (await transcribe(engine)).status_code == 429
        decoder.go.set()
        assert (await first).status_code == 200
        assert (await transcribe(engine)).status_code == 200
    assert decoder.calls == 2
