"""Stage 4: segments of one speaker each, recognised in batches with language, emotion and event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from duet.errors import DuetError, Unavailable
from duet.wire import Segment, SpeakerTurn
from pipelines.clients import Engine
from pipelines.glossary import parse
from pipelines.meeting.context import Context
from pipelines.meeting.job import Options
from speech.decoding.pcm import open_pcm
from speech.level import NO_SPEECH
from speech.recognisers.sensevoice import ABILITIES, BATCH_CLIPS, SenseVoice, find_sensevoice
from speech.recognisers.stitching import shifted, stitched
from speech.splitter import SAMPLE_RATE, Span, split

VERSION = 2
SHORT_SECONDS = 0.3
"""A change of speaker that is shorter than this is an error of the diarizer, not a turn."""


class Spoken(msgspec.Struct, frozen=True):
    """A segment to recognise: one speaker, seconds."""

    start: float
    end: float
    speaker: str | None


async def transcribe(context: Context, done: dict[str, str]) -> str:
    """The artifact is a list of `Segment`. Segments without text are left out."""
    samples = open_pcm(context.artifacts.path(done["decode"], ".pcm"))
    spans = [Span(*pair) for pair in context.artifacts.read(done["segment"], list[tuple[float, float]])]
    turns = context.artifacts.read(done["diarize"], list[SpeakerTurn])
    spoken = assign(samples, spans, turns)
    options = context.request.options
    model_dir = find_sensevoice(context.settings)
    if model_dir is None:
        raise Unavailable(
            "no speech recogniser is installed: put SenseVoice's model.int8.onnx and tokens.txt into "
            "$DUET_HOME/models/sensevoice, or start with --embedded"
        )
    base = [done["decode"], str(model_dir), options.quality, options.language, VERSION]
    key = context.artifacts.key("transcribe", "segments", *base, [[s.start, s.end, s.speaker] for s in spoken])
    if context.artifacts.read(key, list[Segment]) is not None:
        return key
    recogniser = SenseVoice(model_dir)
    try:
        segments: list[Segment] = []
        for start in range(0, len(spoken), BATCH_CLIPS):
            batch = spoken[start : start + BATCH_CLIPS]
            segments += await _batch(context, recogniser, samples, batch, base)
            context.report((start + len(batch)) / len(spoken))
    finally:
        await recogniser.close()
    segments = [segment for segment in segments if segment.text]
    if spoken and not segments:
        context.warn(NO_SPEECH)
    if ineffective := unheard(options, segments):
        context.warn(ineffective)
    context.artifacts.write(key, segments)
    return key


def unheard(options: Options, segments: Sequence[Segment]) -> str | None:
    """What to say of a language that SenseVoice was not told and did not hear."""
    language = options.language
    if language is None or by_engine(options) is not None:
        return None
    if not ABILITIES.hears(language):
        known = ", ".join(sorted(ABILITIES.languages or ()))
        return f"language={language} had no effect: quality=fast is SenseVoice, which knows {known}"
    heard = stitched(segments, segments[-1].end).language if segments else None
    if heard in (None, language):
        return None
    return f"language={language} had no effect: SenseVoice detects the language, and mostly heard {heard}"


def by_engine(options: Options) -> str | None:
    """The option for which Qwen3-ASR writes the text; None if SenseVoice does."""
    if options.quality == "high":
        return "quality=high"
    foreign = options.language is not None and not ABILITIES.hears(options.language)
    return f"language={options.language}" if foreign and options.quality != "fast" else None


async def _batch(
    context: Context,
    recogniser: SenseVoice,
    samples: np.ndarray[Any, np.dtype[np.int16]],
    batch: Sequence[Spoken],
    base: list[Any],
) -> list[Segment]:
    """The segments of one batch, from its artifact if an earlier run made it."""
    key = context.artifacts.key("transcribe", "batch", *base, [[s.start, s.end, s.speaker] for s in batch])
    known = context.artifacts.read(key, list[Segment])
    if known is not None:
        return list(known)
    clips = [samples[int(s.start * SAMPLE_RATE) : int(s.end * SAMPLE_RATE)] for s in batch]
    heard = await recogniser.transcribe([clip.astype(np.float32) / 32768.0 for clip in clips])
    if by_engine(context.request.options) is not None:
        heard = await _again_by_engine(context, clips, heard)
    segments = [
        msgspec.structs.replace(shifted(segment, s.start), speaker=s.speaker)
        for s, segment in zip(batch, heard, strict=True)
    ]
    context.artifacts.write(key, segments)
    return segments


async def _again_by_engine(
    context: Context, clips: list[np.ndarray[Any, np.dtype[np.int16]]], heard: list[Segment]
) -> list[Segment]:
    """Text from Qwen3-ASR, tags from SenseVoice. Without the engine's model the text stays, and the job says so."""
    settings, options = context.settings, context.request.options
    async with Engine(settings, timeout_seconds=settings.router.engine_timeout_seconds) as engine:
        model = settings.router.asr_model
        if not await engine.has_asr(model):
            context.warn(f"{by_engine(options)}: the engine has no speech model ready, SenseVoice transcribed instead")
            return heard
        keywords = [term.text for term in parse(options.glossary)]
        better = []
        for clip, segment in zip(clips, heard, strict=True):
            try:
                found = await engine.transcribe(model, clip, language=options.language, keywords=keywords)
            except DuetError as error:
                if error.param != "language":
                    raise
                context.warn(f"language={options.language}: {error}; SenseVoice transcribed instead")
                return heard
            foreign = options.language is not None and not ABILITIES.hears(options.language)
            better.append(
                msgspec.structs.replace(
                    segment,
                    # What SenseVoice writes for a language that it does not know is no text.
                    text=found.text or ("" if foreign else segment.text),
                    language=found.language or options.language or segment.language,
                    low_confidence=found.low_confidence,
                    words=() if found.text else segment.words,
                )
            )
        return better


def assign(
    samples: np.ndarray[Any, np.dtype[np.int16]], spans: Sequence[Span], turns: Sequence[SpeakerTurn]
) -> list[Spoken]:
    """Speech cut where the speaker changes. The pieces are merged and split to lengths that suit the recogniser."""
    runs: list[tuple[str | None, list[Span]]] = []
    for span in spans:
        for piece, speaker in _by_speaker(span, turns):
            if runs and runs[-1][0] == speaker:
                runs[-1][1].append(piece)
            else:
                runs.append((speaker, [piece]))
    spoken = []
    for speaker, pieces in runs:
        spoken += [Spoken(round(s.start, 3), round(s.end, 3), speaker) for s in split(samples, pieces)]
    return _clamped(spoken)


def _clamped(spoken: list[Spoken]) -> list[Spoken]:
    """Runs of different speakers were padded separately, so their padding may overlap: cut it in the middle."""
    result: list[Spoken] = []
    for item in spoken:
        if result and item.start < result[-1].end:
            middle = round((item.start + result[-1].end) / 2, 3)
            result[-1] = msgspec.structs.replace(result[-1], end=middle)
            item = msgspec.structs.replace(item, start=middle)
        result.append(item)
    return [item for item in result if item.end > item.start]


def _by_speaker(span: Span, turns: Sequence[SpeakerTurn]) -> list[tuple[Span, str | None]]:
    """A stretch of speech divided among the speakers. A part without a speaker belongs to the piece before it."""
    marks = [turn for turn in turns if turn.end > span.start and turn.start < span.end]
    pieces: list[tuple[Span, str | None]] = []
    at = span.start
    for i, turn in enumerate(marks):
        following = marks[i + 1].start if i + 1 < len(marks) else span.end
        end = span.end if i + 1 == len(marks) else min(span.end, max(following, at))
        if end - at < SHORT_SECONDS and pieces:
            pieces[-1] = (Span(pieces[-1][0].start, max(end, at)), pieces[-1][1])
        elif end > at:
            if pieces and pieces[-1][1] == turn.speaker:
                pieces[-1] = (Span(pieces[-1][0].start, end), turn.speaker)
            else:
                pieces.append((Span(at, end), turn.speaker))
        at = max(at, end)
    return pieces or [(span, None)]
