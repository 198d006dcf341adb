"""Stage 1: the uploaded file as 16-bit mono at 16 kHz on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pipelines.meeting.context import Context
from speech.decode import decode_to_pcm, open_pcm, probe
from speech.splitter import SAMPLE_RATE

VERSION = 1


async def decode(context: Context, done: dict[str, str]) -> str:
    """The artifact is the PCM file. Raises `InvalidAudio`, which ends the job: another try would fail the same way."""
    key = context.artifacts.key("decode", "pcm", context.request.input_sha256, VERSION)
    path = await asyncio.to_thread(context.artifacts.make_file, key, ".pcm", lambda target: _write(context, target))
    progress = context.folder.progress()
    progress.audio_seconds = round(len(open_pcm(path)) / SAMPLE_RATE, 3)
    context.folder.write_progress(progress)
    return key


def _write(context: Context, target: Path) -> None:
    source = context.folder.input
    total = probe(source).duration_seconds
    decode_to_pcm(
        source,
        target,
        max_seconds=context.settings.router.max_audio_seconds,
        on_progress=lambda seconds: context.report(seconds / total) if total else None,
    )
