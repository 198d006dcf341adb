"""Segments of pieces of a recording as one transcript."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from duet.wire import Segment, Transcript, Usage, Word
from speech.text import join


def shifted(segment: Segment, seconds: float) -> Segment:
    """The segment with all its times later by `seconds`."""
    words = tuple(Word(w.text, w.start + seconds, None if w.end is None else w.end + seconds) for w in segment.words)
    return msgspec.structs.replace(segment, start=segment.start + seconds, end=segment.end + seconds, words=words)


def stitched(segments: Iterable[Segment], seconds: float) -> Transcript:
    """A transcript of segments in order; its language is the one spoken for most of the time. `seconds`: the recording's
    length, beyond which nothing is said."""
    segments = tuple(_within(segment, seconds) for segment in segments)
    spoken: dict[str, float] = {}
    for segment in segments:
        if segment.language:
            spoken[segment.language] = spoken.get(segment.language, 0.0) + segment.end - segment.start
    language = max(spoken, key=lambda code: spoken[code], default=None)
    return Transcript(join(segment.text for segment in segments), seconds, language, segments)


def merged(transcripts: Sequence[Transcript]) -> Transcript:
    """The transcripts of a recording's channels as one, in the order in which things were said."""
    segments = [
        msgspec.structs.replace(segment, channel=number)
        for number, transcript in enumerate(transcripts, 1)
        for segment in transcript.segments
    ]
    segments.sort(key=lambda segment: (segment.start, segment.channel))
    whole = stitched(segments, max(transcript.duration for transcript in transcripts))
    tokens = sum(transcript.usage.completion_tokens for transcript in transcripts)
    return msgspec.structs.replace(whole, usage=Usage(0, tokens))


def _within(segment: Segment, seconds: float) -> Segment:
    if segment.end <= seconds:
        return segment
    words = tuple(
        Word(word.text, min(word.start, seconds), None if word.end is None else min(word.end, seconds))
        for word in segment.words
    )
    return msgspec.structs.replace(segment, start=min(segment.start, seconds), end=seconds, words=words)
