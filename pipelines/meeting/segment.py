"""Stage 2: the stretches of speech."""

from __future__ import annotations

import asyncio

from pipelines.meeting.context import Context
from speech import vad
from speech.decoding.pcm import open_pcm
from speech.level import NO_SPEECH, audible
from speech.splitter import SAMPLE_RATE

VERSION = 2


async def segment(context: Context, done: dict[str, str]) -> str:
    """The artifact is a list of [start, end] in seconds."""
    key = context.artifacts.key("segment", "vad", done["decode"], VERSION)
    if context.artifacts.read(key, list[tuple[float, float]]) is None:
        samples = open_pcm(context.artifacts.path(done["decode"], ".pcm"))
        total = max(len(samples) / SAMPLE_RATE, 0.001)
        spans = await asyncio.to_thread(
            vad.detect, samples, on_progress=lambda seconds: context.report(seconds / total)
        )
        if not spans:
            context.warn(NO_SPEECH if await asyncio.to_thread(audible, samples) else "the recording is silent")
        context.artifacts.write(key, [(round(span.start, 3), round(span.end, 3)) for span in spans])
    return key
