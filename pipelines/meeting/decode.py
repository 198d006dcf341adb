"""Stage 1: the uploaded file as 16-bit mono at 16 kHz on disk."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipelines.meeting.context import Context
from speech.decoding.decoder import Decoder
from speech.decoding.errors import InvalidAudio
from speech.decoding.pcm import open_pcm
from speech.splitter import SAMPLE_RATE

VERSION = 2


class Heard(msgspec.Struct, frozen=True):
    """What the reader of the outputs must know of the recording."""

    truncated: str | None
    notes: tuple[str, ...]


async def decode(context: Context, done: dict[str, str]) -> str:
    """The artifact is the PCM file. Raises `InvalidAudio`, which ends the job: another try would fail the same way."""
    artifacts, options = context.artifacts, context.request.options
    key = artifacts.key("decode", "pcm", context.request.input_sha256, VERSION)
    about = artifacts.key("decode", "heard", context.request.input_sha256, VERSION)
    decoder = Decoder(max_seconds=context.settings.router.max_audio_seconds)

    async def write(target: Path) -> None:
        source = context.folder.input
        total = await decoder.probe(source)
        found = await decoder.decode(
            source, target, on_progress=lambda seconds: context.report(seconds / total) if total else None
        )
        artifacts.write(about, Heard(found.truncated, found.notes))

    try:
        path = await artifacts.make_file(key, ".pcm", write)
    finally:
        await decoder.close()
    heard: Heard = artifacts.read(about, Heard)
    if heard.truncated and options.strict:
        raise InvalidAudio(f"{heard.truncated}, and strict=true refuses that")
    for warning in (*([heard.truncated] if heard.truncated else ()), *heard.notes):
        context.warn(warning)
    progress = context.folder.progress()
    progress.audio_seconds = round(len(open_pcm(path)) / SAMPLE_RATE, 3)
    context.folder.write_progress(progress)
    return key
