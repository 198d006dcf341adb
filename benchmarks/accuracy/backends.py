"""Who transcribes: SenseVoice in a child process, the router or the engine over HTTP, or a file of ready transcripts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from httpx import Response

from benchmarks.accuracy.manifest import Utterance
from duet.client import Client, Refused, Unreachable
from duet.errors import DuetError
from duet.keys import api_key
from duet.settings import Settings
from speech import vad
from speech.decoding.trusted import samples
from speech.recognisers.sensevoice import MAX_CLIP_SECONDS, SenseVoice, find_sensevoice
from speech.splitter import SAMPLE_RATE, split
from speech.wav import as_wav

MAX_AUDIO_SECONDS = 4 * 3600.0
AT_ONCE = 4
RECORDINGS_KEPT = 2
ANSWER_SECONDS, CONNECT_SECONDS = 3600.0, 5.0

Samples = np.ndarray[Any, np.dtype[np.float32]]


class BackendError(DuetError):
    """The backend cannot be used, or it failed on a recording."""


@dataclass(frozen=True)
class Heard:
    """A transcript. `route`: the router's recogniser that made it. `degraded`: not the one that was asked for."""

    text: str
    route: str = ""
    degraded: bool = False


class Backend(Protocol):
    async def identify(self) -> str:
        """A name so exact that backends of the same name give the same transcripts. Raises `BackendError`."""

    async def transcribe(self, utterance: Utterance, samples: Samples) -> Heard:
        """Raises `DuetError`."""

    async def close(self) -> None: ...


class SenseVoiceBackend:
    """A child process of ours, without the router."""

    def __init__(self, settings: Settings, model: str | None) -> None:
        folder = Path(model) if model else find_sensevoice(settings)
        if folder is None:
            raise BackendError("no SenseVoice model: set router.sensevoice_dir, or use --embedded")
        if not folder.is_dir():
            raise BackendError(f"{folder}: there is no such folder with a SenseVoice model")
        self._identity = f"sensevoice {folder.name} {digest_of_folder(folder)}"
        self._model = SenseVoice(folder, threads=2)

    async def identify(self) -> str:
        return self._identity

    async def transcribe(self, utterance: Utterance, samples: Samples) -> Heard:
        clips: list[Samples] = [samples]
        if len(samples) > MAX_CLIP_SECONDS * SAMPLE_RATE:
            spans = split(samples, vad.detect(samples))
            clips = [samples[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)] for span in spans]
        return Heard(" ".join(segment.text for segment in await self._model.transcribe(clips)).strip())

    async def close(self) -> None:
        await self._model.close()


class HttpBackend:
    """The router, or the engine with a speech model: `POST /v1/audio/transcriptions`.

    Over HTTP a model is known by its name and size only: a changed model under the same name needs `--fresh`.
    """

    def __init__(self, settings: Settings, url: str, name: str, shown: str, fields: dict[str, str]) -> None:
        """`shown` is the path where the service lists its models."""
        self._name, self._shown, self._fields = name, shown, fields
        self._client = Client(
            url, api_key(settings.home), timeout_seconds=ANSWER_SECONDS, connect_seconds=CONNECT_SECONDS
        )

    async def identify(self) -> str:
        answer = (await self._answered("GET", self._shown)).json()
        found = [
            [model["id"], {key: model["duet"].get(key) for key in ("backend", "ready", "bytes_on_disk")}]
            for model in answer.get("data", [answer])
        ]
        return f"{self._name} {json.dumps([self._fields, found], sort_keys=True)}"

    async def transcribe(self, utterance: Utterance, samples: Samples) -> Heard:
        files = {"file": ("clip.wav", as_wav(samples), "audio/wav")}
        answer = await self._answered(
            "POST", "/v1/audio/transcriptions", files=files, data=self._fields, about=f"{utterance.id}: "
        )
        return Heard(
            str(answer.json()["text"]).strip(),
            answer.headers.get("X-Duet-Route", ""),
            answer.headers.get("X-Duet-Degraded") == "true",
        )

    async def close(self) -> None:
        await self._client.close()

    async def _answered(self, method: str, path: str, *, about: str = "", **options: Any) -> Response:
        try:
            return await self._client.request(method, path, **options)
        except Unreachable as error:
            raise BackendError(f"{self._client.url}: {error.cause}: is it running?") from error
        except Refused as error:
            raise BackendError(f"{about}HTTP {error.answered}: {error.said or 'no further word'}") from error


class Ready:
    """Transcripts made elsewhere: a JSONL file with `id` and `text`."""

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            rows = [json.loads(line) for line in content.split(b"\n") if line.strip()]
            self._texts = {str(row["id"]): str(row["text"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{path}: not a JSONL file of objects with id and text ({error})") from error
        if len(self._texts) < len(rows):
            raise BackendError(f"{path}: an id is there twice")
        self._identity = f"hypotheses {path.name} {hashlib.sha256(content).hexdigest()[:16]}"

    async def identify(self) -> str:
        return self._identity

    async def transcribe(self, utterance: Utterance, samples: Samples) -> Heard:
        if utterance.id not in self._texts:
            raise BackendError(f"the hypotheses have no transcript of {utterance.id}")
        return Heard(self._texts[utterance.id])

    async def close(self) -> None:
        return


Make = Callable[[Settings, str | None, str], Backend]

BACKENDS: dict[str, Make] = {
    "sensevoice": lambda settings, model, _: SenseVoiceBackend(settings, model),
    "router": lambda settings, model, quality: HttpBackend(
        settings,
        f"http://127.0.0.1:{settings.router.port}",
        "router",
        "/v1/models",
        {"model": model or "auto", "quality": quality, "response_format": "json"},
    ),
    "engine": lambda settings, model, _: HttpBackend(
        settings,
        settings.engine_url,
        "engine",
        f"/v1/models/{model or 'asr'}",
        {"model": model or "asr", "response_format": "json"},
    ),
}
"""By the name after `--backend`: (settings, --model, --quality)."""


@dataclass(frozen=True)
class Cache:
    """Transcripts by utterance and backend, one line each, so that an interrupted run goes on where it stopped."""

    path: Path

    def read(self) -> dict[str, Heard]:
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                found[row["key"]] = Heard(row["text"], row["route"])
            except (ValueError, TypeError, KeyError):
                continue  # empty, cut off by an interruption, or written by another version
        return found

    def add(self, key: str, heard: Heard) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # Begin a new line: the last run may have left half of one.
            row = {"key": key, "text": heard.text, "route": heard.route}
            file.write("\n" + json.dumps(row, ensure_ascii=False) + "\n")


async def transcripts(
    backend: Backend, utterances: Sequence[Utterance], cache: Cache | None, on_progress: Callable[[int], None]
) -> list[Heard]:
    """What `backend` hears, in order of the utterances; several are asked for at once. A degraded answer is not cached.

    Raises `DuetError` for a recording that cannot be decoded, and what the backend raises.
    """
    identity = await backend.identify()
    known = cache.read() if cache else {}
    recordings = _Recordings()
    limit, done = asyncio.Semaphore(AT_ONCE), 0

    async def one(utterance: Utterance) -> Heard:
        nonlocal done
        async with limit:
            place = [recordings.digest(utterance.audio), utterance.id, utterance.start, utterance.end, identity]
            key = hashlib.sha256(json.dumps(place).encode()).hexdigest()
            heard = known.get(key)
            if heard is None:
                heard = await backend.transcribe(utterance, _cut(recordings.samples(utterance.audio), utterance))
                if cache and not heard.degraded:
                    cache.add(key, heard)
            done += 1
            on_progress(done)
            return heard

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(utterance)) for utterance in utterances]
    except* DuetError as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


class _Recordings:
    """Samples of the last few audio files, and the hashes of all."""

    def __init__(self) -> None:
        self._digests: dict[Path, str] = {}
        self._samples: dict[Path, Samples] = {}

    def digest(self, path: Path) -> str:
        if path not in self._digests:
            with path.open("rb") as file:
                self._digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[path]

    def samples(self, path: Path) -> Samples:
        if path not in self._samples:
            while len(self._samples) >= RECORDINGS_KEPT:
                self._samples.pop(next(iter(self._samples)))
            self._samples[path] = samples(path, max_seconds=MAX_AUDIO_SECONDS)
        return self._samples[path]


def _cut(samples: Samples, utterance: Utterance) -> Samples:
    """Raises `BackendError` when the recording ends before the utterance begins."""
    first = round((utterance.start or 0.0) * SAMPLE_RATE)
    last = len(samples) if utterance.end is None else round(utterance.end * SAMPLE_RATE)
    if first >= len(samples):
        raise BackendError(f"{utterance.id} begins after the end of {utterance.audio}")
    return samples[first:last]


def digest_of_folder(folder: Path) -> str:
    """A hash of the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + os.fsencode("\0"))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
