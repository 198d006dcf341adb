"""Who transcribes: SenseVoice in a child process, the router or the engine over HTTP, or a file of ready transcripts."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np

from benchmarks.accuracy.manifest import Utterance
from duet.errors import DuetError
from duet.keys import api_key
from duet.settings import Settings
from speech import vad
from speech.decode import decode
from speech.sensevoice import MAX_CLIP_SECONDS, SenseVoice, find_sensevoice
from speech.splitter import SAMPLE_RATE, split

MAX_AUDIO_SECONDS = 4 * 3600.0
AT_ONCE = 4
HTTP_TIMEOUT = httpx.Timeout(3600.0, connect=5.0)

Samples = np.ndarray[Any, np.dtype[np.float32]]


class BackendError(DuetError):
    """The backend cannot be used, or failed on a recording."""


class Backend(Protocol):
    """`identity` names whoever transcribes so exactly that the same identity means the same transcripts."""

    identity: str

    async def transcribe(self, utterance: Utterance, samples: Samples) -> str: ...

    async def close(self) -> None: ...


class SenseVoiceBackend:
    def __init__(self, settings: Settings, model: str | None) -> None:
        folder = Path(model) if model else find_sensevoice(settings)
        if folder is None:
            raise BackendError("no SenseVoice model: set router.sensevoice_dir, or use --embedded")
        self.identity = f"sensevoice {folder.name} {_digest_of_folder(folder)}"
        self._model = SenseVoice(folder, threads=2)

    async def transcribe(self, utterance: Utterance, samples: Samples) -> str:
        clips: list[Samples] = [samples]
        if len(samples) > MAX_CLIP_SECONDS * SAMPLE_RATE:
            spans = split(samples, vad.detect(samples))
            clips = [samples[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)] for span in spans]
        return " ".join(segment.text for segment in await self._model.transcribe(clips)).strip()

    async def close(self) -> None:
        await self._model.close()


class HttpBackend:
    """The router, or the engine with a speech model: `POST /v1/audio/transcriptions`."""

    def __init__(self, settings: Settings, url: str, name: str, fields: dict[str, str]) -> None:
        self.identity = f"{name} {json.dumps(fields, sort_keys=True)}"
        self._fields = fields
        key = {"Authorization": f"Bearer {api_key(settings.home)}"}
        self._client = httpx.AsyncClient(base_url=url, headers=key, timeout=HTTP_TIMEOUT, trust_env=False)

    async def transcribe(self, utterance: Utterance, samples: Samples) -> str:
        files = {"file": ("clip.wav", as_wav(samples), "audio/wav")}
        try:
            answer = await self._client.post("/v1/audio/transcriptions", files=files, data=self._fields)
        except httpx.HTTPError as error:
            raise BackendError(f"{self._client.base_url}: {type(error).__name__}: is it running?") from error
        if answer.status_code != 200:
            raise BackendError(f"{utterance.id}: HTTP {answer.status_code}: {answer.text[:300]}")
        return str(answer.json()["text"])

    async def close(self) -> None:
        await self._client.aclose()


class Ready:
    """Transcripts made elsewhere: a JSONL file with `id` and `text`."""

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            rows = [json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip()]
            self._texts = {str(row["id"]): str(row["text"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{path}: not a JSONL file of objects with id and text ({error})") from error
        self.identity = f"hypotheses {path.name} {hashlib.sha256(content).hexdigest()[:16]}"

    async def transcribe(self, utterance: Utterance, samples: Samples) -> str:
        if utterance.id not in self._texts:
            raise BackendError(f"the hypotheses have no transcript of {utterance.id}")
        return self._texts[utterance.id]

    async def close(self) -> None:
        return


Make = Callable[[Settings, str | None, str], Backend]

BACKENDS: dict[str, Make] = {
    "sensevoice": lambda settings, model, _: SenseVoiceBackend(settings, model),
    "router": lambda settings, model, quality: HttpBackend(
        settings,
        f"http://127.0.0.1:{settings.router.port}",
        "router",
        {"model": model or "auto", "quality": quality, "response_format": "json"},
    ),
    "engine": lambda settings, model, _: HttpBackend(
        settings, settings.engine_url, "engine", {"model": model or "asr", "response_format": "json"}
    ),
}
"""By the name after `--backend`: (settings, --model, --quality)."""


@dataclass(frozen=True)
class Cache:
    """Transcripts by utterance and backend, one line each, so that an interrupted run goes on where it stopped."""

    path: Path

    def read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # empty, or cut off when the run before was interrupted
            found[row["key"]] = row["text"]
        return found

    def add(self, key: str, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # A line of its own, whatever the last run left behind.
            file.write("\n" + json.dumps({"key": key, "text": text}, ensure_ascii=False) + "\n")


async def transcripts(
    backend: Backend, utterances: Sequence[Utterance], cache: Cache | None, on_progress: Callable[[int], None]
) -> list[str]:
    """What `backend` hears, in order; a few at once. Raises `BackendError` or what the backend raises."""
    known = cache.read() if cache else {}
    recordings: dict[Path, tuple[str, Samples]] = {}
    limit, done = asyncio.Semaphore(AT_ONCE), 0

    def opened(path: Path) -> tuple[str, Samples]:
        if path not in recordings:
            while len(recordings) >= AT_ONCE:
                recordings.pop(next(iter(recordings)))
            recordings[path] = (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                decode(path, max_seconds=MAX_AUDIO_SECONDS),
            )
        return recordings[path]

    async def one(utterance: Utterance) -> str:
        nonlocal done
        async with limit:
            digest, samples = opened(utterance.audio)
            key = hashlib.sha256(
                json.dumps([digest, utterance.id, utterance.start, utterance.end, backend.identity]).encode()
            ).hexdigest()
            text = known.get(key)
            if text is None:
                text = await backend.transcribe(utterance, _cut(samples, utterance))
                if cache:
                    cache.add(key, text)
            done += 1
            on_progress(done)
            return text

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(utterance)) for utterance in utterances]
    except* DuetError as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _cut(samples: Samples, utterance: Utterance) -> Samples:
    first = round((utterance.start or 0.0) * SAMPLE_RATE)
    last = len(samples) if utterance.end is None else round(utterance.end * SAMPLE_RATE)
    return samples[first:last]


def as_wav(samples: Samples) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _digest_of_folder(folder: Path) -> str:
    """Of the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + os.fsencode("\0"))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
