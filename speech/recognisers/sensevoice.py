"""SenseVoice in a supervised child process: clips of at most 30 s, and recordings of any length cut at pauses.

It detects the language itself. For silence it would make up a word, so only speech that the VAD found is given to it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duet.errors import Unavailable
from duet.settings import Settings
from duet.supervise.service import Service
from duet.wire import Segment, Transcript
from speech import vad
from speech.installed import installed_model
from speech.level import lifted
from speech.recognisers.child.messages import Recognise, Recognised, RecogniseFailed
from speech.recognisers.child.sensevoice import MODEL_NAMES
from speech.recognisers.port import Abilities, Options, Pcm
from speech.recognisers.stitching import shifted, stitched
from speech.splitter import SAMPLE_RATE, Span, split

MAX_CLIP_SECONDS = 30.0
ABILITIES = Abilities(
    languages=frozenset({"zh", "en", "yue", "ja", "ko"}),
    honours=frozenset({"timestamp_granularities"}),
    max_seconds=MAX_CLIP_SECONDS,
)
BATCH_CLIPS = 8
"""Clips in one message: bounds its size, and how long another caller waits for its turn."""
TIMEOUT_SECONDS = 120.0
EMBEDDED_ID = "duet-tiny-asr"


def find_sensevoice(settings: Settings) -> Path | None:
    """The model's folder; None when there is none."""
    return installed_model(settings, chosen=settings.router.sensevoice_dir, embedded_id=EMBEDDED_ID, name="sensevoice")


class SenseVoice:
    """Safe to call concurrently. The child is started by the first call, and again after it died."""

    def __init__(self, model_dir: Path, *, threads: int = 2) -> None:
        arguments = ["--model-dir", str(model_dir), "--threads", str(threads)]
        self._service: Service[Recognised | RecogniseFailed] = Service(
            "speech.recognisers.child.sensevoice", arguments, Recognised | RecogniseFailed, name="sensevoice"
        )
        # The child does one batch after another. The wait for a turn happens here, outside the call's time limit.
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return self._service.pid

    async def transcribe(
        self, clips: Sequence[np.ndarray[Any, np.dtype[np.float32]]], *, itn: bool = True
    ) -> list[Segment]:
        """One segment for each clip of at most 30 s, with times from the clip's start. Quiet clips are raised. `itn`: digits
        and punctuation.

        Raises `WorkerLost` if the child dies, `Unavailable` if the model cannot be used, and ValueError for a longer clip: the
        caller cuts (`speech.splitter`).
        """
        longest = max((len(clip) for clip in clips), default=0) / SAMPLE_RATE
        if longest > MAX_CLIP_SECONDS:
            raise ValueError(f"a clip of {longest:.1f} s; at most {MAX_CLIP_SECONDS:.0f} s are recognised at once")
        segments: list[Segment] = []
        for start in range(0, len(clips), BATCH_CLIPS):
            batch = tuple(
                lifted(clip).astype("<f4", copy=False).tobytes() for clip in clips[start : start + BATCH_CLIPS]
            )
            async with self._turn:
                request = Recognise(secrets.token_hex(8), batch, itn)
                answer = await self._service.call(request, timeout_seconds=TIMEOUT_SECONDS)
            if isinstance(answer, RecogniseFailed):
                raise Unavailable(answer.message)
            segments += answer.segments
        return segments

    async def close(self) -> None:
        await self._service.close()


class SenseVoiceRecogniser:
    """The model may be put into `model_dir` later, without a restart. Its process starts with the first clip."""

    name, abilities, unready = "sensevoice", ABILITIES, "no SenseVoice model is installed"

    def __init__(self, model_dir: Path) -> None:
        self.model = SenseVoice(model_dir)
        self._model_dir = model_dir

    async def ready(self) -> bool:
        """Whether the files are there. Whether they are a model shows when they are loaded."""
        names = {path.name for path in self._model_dir.iterdir()} if self._model_dir.is_dir() else set()
        return "tokens.txt" in names and not names.isdisjoint(MODEL_NAMES)

    async def transcribe(self, pcm: Pcm, options: Options) -> Transcript:
        """Segments follow the pauses. `options` change nothing here."""
        spans = await asyncio.to_thread(_spoken, pcm)
        segments: list[Segment] = []
        for first in range(0, len(spans), BATCH_CLIPS):  # only a batch is in memory as float32
            batch = spans[first : first + BATCH_CLIPS]
            heard = await self.model.transcribe([_clip(pcm, span) for span in batch])
            segments += [
                shifted(segment, span.start) for span, segment in zip(batch, heard, strict=True) if segment.text
            ]
        return stitched(segments, len(pcm) / SAMPLE_RATE)

    async def close(self) -> None:
        await self.model.close()


def _clip(pcm: Pcm, span: Span) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return pcm[int(span.start * SAMPLE_RATE) : int(span.end * SAMPLE_RATE)].astype(np.float32) / np.float32(32768.0)


def _spoken(pcm: Pcm) -> list[Span]:
    """The speech to recognise; none in silence. It is one piece if it fits a clip, so that no context is lost, and otherwise
    cut at pauses."""
    spans = vad.detect(pcm)
    if (
        spans
        and spans[-1].end - spans[0].start <= MAX_CLIP_SECONDS - 2.0
        and len(pcm) <= MAX_CLIP_SECONDS * SAMPLE_RATE
    ):
        spans = [Span(spans[0].start, spans[-1].end)]
    return split(pcm, spans, max_seconds=MAX_CLIP_SECONDS - 2.0)
