"""SenseVoice for the router: silence is gated by VAD, long audio goes in segments."""

from __future__ import annotations

import asyncio

from asr_router.backends.port import Options, Samples
from duet.wire import Segment, Transcript
from speech import vad
from speech.sensevoice import MAX_CLIP_SECONDS, SenseVoice, shifted
from speech.splitter import SAMPLE_RATE, Span, split
from speech.text import join


class SenseVoiceBackend:
    def __init__(self, recogniser: SenseVoice | None) -> None:
        self.recogniser = recogniser

    async def ready(self) -> bool:
        return self.recogniser is not None

    async def transcribe(self, samples: Samples, options: Options) -> Transcript:
        """Detects the language itself: `options.language` only decided the route. Segments follow the pauses."""
        assert self.recogniser is not None
        duration = len(samples) / SAMPLE_RATE
        spans = await asyncio.to_thread(_segments, samples)
        clips = [samples[int(span.start * SAMPLE_RATE) : int(span.end * SAMPLE_RATE)] for span in spans]
        heard = await self.recogniser.transcribe(clips)
        segments = tuple(
            shifted(segment, span.start) for span, segment in zip(spans, heard, strict=True) if segment.text
        )
        return Transcript(join(s.text for s in segments), duration, spoken_language(segments), segments)

    async def close(self) -> None:
        if self.recogniser is not None:
            await self.recogniser.close()


def _segments(samples: Samples) -> list[Span]:
    """Speech to recognise: one piece if all of it fits a clip (no context is lost), else cut at pauses. Silence gives none:
    the recogniser would make up a word for it."""
    spans = vad.detect(samples)
    if (
        spans
        and spans[-1].end - spans[0].start <= MAX_CLIP_SECONDS - 0.5
        and len(samples) <= MAX_CLIP_SECONDS * SAMPLE_RATE
    ):
        spans = [Span(spans[0].start, spans[-1].end)]
    return split(samples, spans, max_seconds=MAX_CLIP_SECONDS - 2.0)


def spoken_language(segments: tuple[Segment, ...]) -> str | None:
    """The language of most of the time."""
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.end - segment.start
    return max(seconds, key=lambda language: seconds[language], default=None)
