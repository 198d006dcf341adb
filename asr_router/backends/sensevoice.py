"""SenseVoice for the router: silence is gated by VAD, long audio goes in segments, a few at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from asr_router.backends.port import Options, Pcm
from duet.wire import Segment, Transcript
from speech import vad
from speech.sensevoice import BATCH_CLIPS, MAX_CLIP_SECONDS, SenseVoice, shifted
from speech.sensevoice_child import MODEL_NAMES
from speech.splitter import SAMPLE_RATE, Span, split
from speech.text import join


class SenseVoiceBackend:
    """The model in `model_dir` may come later: no restart is needed then. Its process starts with the first clip."""

    def __init__(self, model_dir: Path) -> None:
        self.recogniser = SenseVoice(model_dir)
        self._model_dir = model_dir

    async def ready(self) -> bool:
        """Whether the files are there; that they are a model is seen when it is loaded."""
        names = {path.name for path in self._model_dir.iterdir()} if self._model_dir.is_dir() else set()
        return "tokens.txt" in names and not names.isdisjoint(MODEL_NAMES)

    async def transcribe(self, pcm: Pcm, options: Options) -> Transcript:
        """Detects the language itself: `options.language` only decided the route. Segments follow the pauses."""
        spans = await asyncio.to_thread(_segments, pcm)
        segments: list[Segment] = []
        for first in range(0, len(spans), BATCH_CLIPS):  # only a batch is in memory as float32
            batch = spans[first : first + BATCH_CLIPS]
            heard = await self.recogniser.transcribe([_clip(pcm, span) for span in batch])
            segments += [
                shifted(segment, span.start) for span, segment in zip(batch, heard, strict=True) if segment.text
            ]
        return Transcript(
            join(segment.text for segment in segments),
            len(pcm) / SAMPLE_RATE,
            spoken_language(segments),
            tuple(segments),
        )

    async def close(self) -> None:
        await self.recogniser.close()


def _clip(pcm: Pcm, span: Span) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return pcm[int(span.start * SAMPLE_RATE) : int(span.end * SAMPLE_RATE)].astype(np.float32) / np.float32(32768.0)


def _segments(pcm: Pcm) -> list[Span]:
    """Speech to recognise: one piece if all of it fits a clip (no context is lost), else cut at pauses. Silence gives none:
    the recogniser would make up a word for it."""
    spans = vad.detect(pcm)
    if (
        spans
        and spans[-1].end - spans[0].start <= MAX_CLIP_SECONDS - 2.0
        and len(pcm) <= MAX_CLIP_SECONDS * SAMPLE_RATE
    ):
        spans = [Span(spans[0].start, spans[-1].end)]
    return split(pcm, spans, max_seconds=MAX_CLIP_SECONDS - 2.0)


def spoken_language(segments: list[Segment]) -> str | None:
    """The language of most of the time."""
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.end - segment.start
    return max(seconds, key=lambda language: seconds[language], default=None)
