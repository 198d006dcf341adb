"""Stage 7: the five outputs. Text from speech is escaped where it could be markup, and code renders the times."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import msgspec

from duet.wire import SpeakerTurn
from pipelines.glossary import parse
from pipelines.meeting.artifacts import write_atomically
from pipelines.meeting.context import Context
from pipelines.meeting.review.stage import Review, ReviewedSegment
from pipelines.meeting.summarize import Summary
from speech import formats
from speech.decoding.pcm import open_pcm
from speech.splitter import SAMPLE_RATE
from speech.words import mentions

TIMELINE_VERSION = 1
_HEADINGS = {"decision": "Decisions", "action": "Actions", "question": "Questions", "point": "Points"}


async def export(context: Context, done: dict[str, str]) -> str:
    """Writes transcript, reviewed, timeline, srt and summary; the key is the timeline's."""
    reviewed = context.artifacts.read(done["review"], Review)
    summary = context.artifacts.read(done["summarize"], Summary)
    turns = context.artifacts.read(done["diarize"], list[SpeakerTurn])
    seconds = len(open_pcm(context.artifacts.path(done["decode"], ".pcm"))) / SAMPLE_RATE
    title = context.request.options.title or "Meeting"
    warnings = context.folder.progress().warnings
    texts = {
        "transcript": transcript(title, seconds, reviewed),
        "reviewed": reviewed_markdown(title, seconds, reviewed),
        "srt": srt_text(reviewed, seconds),
        "summary": summary_markdown(context, title, seconds, reviewed, summary),
    }
    for name, text in texts.items():
        write_atomically(context.folder.output(name), text.encode())
    shown = timeline(context, title, seconds, reviewed, turns, warnings)
    write_atomically(
        context.folder.output("timeline"), msgspec.json.format(msgspec.json.encode(shown), indent=1) + b"\n"
    )
    return context.artifacts.key("export", "timeline", done["review"], done["summarize"])


def transcript(title: str, seconds: float, reviewed: Review) -> str:
    """What was heard, unedited."""
    lines = [f"# {escaped(title)}", "", f"Duration {clock(seconds)}. Transcript as it was heard.", ""]
    for item in reviewed.segments:
        lines += [f"**{_speaker(item)}** [{clock(item.segment.start)}]{_tags(item)}  ", escaped(item.segment.text), ""]
    return "\n".join(lines)


def reviewed_markdown(title: str, seconds: float, reviewed: Review) -> str:
    """The corrected text, with one paragraph for each speaker's turn."""
    by = (
        f"Reviewed by {reviewed.reviewer.id}."
        if reviewed.reviewer
        else "No review model was available: only glossary terms were corrected, by their sound."
    )
    changed = sum(edit.accepted for item in reviewed.segments for edit in item.edits)
    lines = [f"# {escaped(title)}", "", f"Duration {clock(seconds)}. {by} {changed} corrections.", ""]
    speaker = None
    for item in reviewed.segments:
        if item.segment.speaker != speaker or speaker is None:
            speaker = item.segment.speaker
            lines += ["", f"### {_speaker(item)} · {clock(item.segment.start)}", ""]
        lines.append(_marked(item))
    return "\n".join(lines) + "\n"


def srt_text(reviewed: Review, seconds: float) -> str:
    segments = [msgspec.structs.replace(item.segment, text=item.text) for item in reviewed.segments]
    speakers = any(item.segment.speaker for item in reviewed.segments)
    return formats.to_srt(segments, seconds=seconds, speakers=speakers)


def timeline(
    context: Context, title: str, seconds: float, reviewed: Review, turns: list[SpeakerTurn], warnings: list[str]
) -> dict[str, Any]:
    """Everything known about the meeting, for programs."""
    return {
        "version": TIMELINE_VERSION,
        "id": context.request.id,
        "title": title,
        "duration": round(seconds, 3),
        "models": {"review": reviewed.reviewer and reviewed.reviewer.id, "quality": context.request.options.quality},
        "glossary": [term.text for term in parse(context.request.options.glossary)],
        "warnings": warnings,
        "speakers": [{"speaker": name, "seconds": round(spent, 1)} for name, spent in talk_time(reviewed).items()],
        "segments": [
            {
                "id": item.id,
                "start": round(item.segment.start, 3),
                "end": round(item.segment.end, 3),
                "speaker": item.segment.speaker,
                "text": item.segment.text,
                "reviewed": item.text,
                "language": item.segment.language,
                "emotion": item.segment.emotion,
                "event": item.segment.event,
                "low_confidence": item.segment.low_confidence,
                "words": [{"text": w.text, "start": round(w.start, 2)} for w in item.segment.words],
                "edits": [msgspec.to_builtins(edit) for edit in item.edits],
            }
            for item in reviewed.segments
        ],
        "turns": [msgspec.to_builtins(turn) for turn in turns],
    }


def summary_markdown(context: Context, title: str, seconds: float, reviewed: Review, summary: Summary) -> str:
    how = {
        "model": f"Written by {summary.model} from the reviewed transcript.",
        "extract": "An extract: sentences picked from the transcript by rules, not written by a language model.",
        "empty": "Nothing was said in this recording.",
    }[summary.method]
    lines = [f"# Summary: {escaped(title)}", "", f"Duration {clock(seconds)}. {how}", ""]
    if summary.overview:
        lines += [escaped(summary.overview), ""]
    starts = {item.id: item.segment.start for item in reviewed.segments}
    for kind, heading in _HEADINGS.items():
        items = [item for item in summary.items if item.kind == kind]
        if items:
            lines += [f"## {heading}", ""]
            for item in items:
                times = ", ".join(clock(starts[name]) for name in item.segment_ids)
                doubt = "" if item.verified else " *(unverified: the quote was not found)*"
                lines.append(f"- {escaped(item.text)} [{times}]{doubt}")
            lines.append("")
    lines += _facts(context, reviewed)
    return "\n".join(lines)


def _facts(context: Context, reviewed: Review) -> list[str]:
    lines = ["## Facts", ""]
    for name, spent in talk_time(reviewed).items():
        lines.append(f"- {name} spoke for {clock(spent)}")
    languages = sorted({item.segment.language for item in reviewed.segments if item.segment.language})
    if languages:
        lines.append(f"- Languages: {', '.join(languages)}")
    text = "\n".join(item.text for item in reviewed.segments)
    found = [term.text for term in parse(context.request.options.glossary) if mentions(text, term.text)]
    if found:
        lines.append(f"- Glossary terms heard: {', '.join(escaped(term) for term in found)}")
    return [*lines, ""]


def talk_time(reviewed: Review) -> dict[str, float]:
    """Seconds by speaker, in order of appearance."""
    spent: dict[str, float] = defaultdict(float)
    for item in reviewed.segments:
        spent[_speaker(item)] += item.segment.end - item.segment.start
    return dict(spent)


def _speaker(item: ReviewedSegment) -> str:
    return item.segment.speaker or "Speaker"


def _tags(item: ReviewedSegment) -> str:
    tags = [item.segment.language, item.segment.emotion, item.segment.event]
    shown = [tag for tag in tags if tag and tag not in ("neutral", "speech")]
    return f" ({', '.join(shown)})" if shown else ""


def _marked(item: ReviewedSegment) -> str:
    """The reviewed text with its corrections in bold."""
    shown, done = "", 0
    for start, end in item.changed:
        bold = escaped(item.text[start:end])
        shown += escaped(item.text[done:start]) + (f"**{bold}**" if bold.strip() else bold)
        done = end
    return shown + escaped(item.text[done:])


def escaped(text: str) -> str:
    """Speech as plain text in Markdown: no markup, no HTML, one line."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", re.sub(r"\s+", " ", text))


def clock(seconds: float) -> str:
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"
