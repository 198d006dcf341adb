"""What is measured: recordings, and what was said in them by whom.

Two forms, both with audio paths relative to the file itself:

- `*.jsonl`, one utterance a line: `{"audio": "a.flac", "text": "…", "language": "zh", "terms": ["…"]}`; `id`, `language`
  (a label that figures are grouped by), `terms` (glossary terms that are said), and `start` and `end` (seconds, for a part
  of the recording) may be left out;
- `*.json`, one meeting: `{"audio": "m.flac", "glossary": ["…"], "glossary_absent": ["…"], "turns": [{"start": 0.6,
  "end": 3.7, "speaker": "A", "text": "…"}]}`; for `cer` each turn is an utterance.

Other fields are notes for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from benchmarks.accuracy.figures import term_counts
from duet.errors import DuetError
from speech.normalise import is_han, units


class ManifestError(DuetError):
    """The manifest is wrong; the message names file, line and field."""


_Form = TypeVar("_Form")
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Words = Annotated[str, msgspec.Meta(min_length=1)]


class _Line(msgspec.Struct):
    audio: Words
    text: str
    id: str = ""
    language: str = ""
    terms: tuple[Words, ...] = ()
    start: Seconds | None = None
    end: Seconds | None = None


class _Turn(msgspec.Struct):
    start: Seconds
    end: Seconds
    speaker: Words
    text: str = ""


class _Meeting(msgspec.Struct):
    audio: Words
    turns: tuple[_Turn, ...]
    id: str = ""
    glossary: tuple[Words, ...] = ()
    glossary_absent: tuple[Words, ...] = ()


@dataclass(frozen=True)
class Utterance:
    """`text` was said in `audio`, between `start` and `end` seconds if given. `glossary` belongs to its meeting or manifest."""

    id: str
    audio: Path
    text: str
    language: str
    terms: tuple[str, ...]
    glossary: tuple[str, ...]
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Turn:
    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Meeting:
    id: str
    audio: Path
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Manifest:
    """The contents of one or more files. `absent`: terms that are never said in them."""

    files: tuple[Path, ...]
    utterances: tuple[Utterance, ...]
    meetings: tuple[Meeting, ...]
    absent: tuple[str, ...]


def read(paths: Sequence[Path]) -> Manifest:
    """Raises `ManifestError`."""
    utterances: list[Utterance] = []
    meetings: list[Meeting] = []
    absent: list[str] = []
    for path in paths:
        if path.suffix == ".jsonl":
            utterances += _lines(path)
            continue
        found = _decode(path, _content(path), _Meeting, "")
        name, audio = found.id or path.stem, _audio(path, found.audio, "")
        for number, turn in enumerate(found.turns):
            _ordered(turn.start, turn.end, path, f": turns[{number}]")
        meetings.append(Meeting(name, audio, tuple(Turn(turn.start, turn.end, turn.speaker) for turn in found.turns)))
        utterances += _turns(found, name, audio)
        absent += found.glossary_absent
    if repeated := [name for name, times in Counter(utterance.id for utterance in utterances).items() if times > 1]:
        raise ManifestError(f"{repeated[0]!r} is the id of two utterances")
    if wrong := [term for term in absent if any(_says(utterance.text, term) for utterance in utterances)]:
        raise ManifestError(f"{wrong[0]!r} is listed as absent and is said")
    return Manifest(tuple(paths), tuple(utterances), tuple(meetings), tuple(dict.fromkeys(absent)))


def _turns(meeting: _Meeting, name: str, audio: Path) -> list[Utterance]:
    """Turns whose text is known."""
    result = []
    for number, turn in enumerate(meeting.turns):
        if turn.text:
            said = tuple(term for term in meeting.glossary if _says(turn.text, term))
            place = f"{name}/{number:03d}"
            language = script(turn.text)
            result.append(Utterance(place, audio, turn.text, language, said, meeting.glossary, turn.start, turn.end))
    return result


def _lines(path: Path) -> list[Utterance]:
    rows = []
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if line.strip():
            where = f" line {number}"
            row = _decode(path, line, _Line, where)
            _ordered(row.start, row.end, path, where)
            rows.append((row, _audio(path, row.audio, where), row.id or f"{path.stem}/{number}"))
    glossary = tuple(dict.fromkeys(term for row, _, _ in rows for term in row.terms))
    return [
        Utterance(name, audio, row.text, row.language or script(row.text), row.terms, glossary, row.start, row.end)
        for row, audio, name in rows
    ]


def _says(text: str, term: str) -> bool:
    return term_counts(text, "", (term,))[1] > 0


def _ordered(start: float | None, end: float | None, path: Path, where: str) -> None:
    if end is not None and end <= (start or 0.0):
        raise ManifestError(f"{path}{where} ends before it starts")


def script(text: str) -> str:
    """`zh`, `en` or `mixed`, by the characters."""
    found = units(text)
    han = sum(is_han(unit) for unit in found)
    return "zh" if han and han == len(found) else "mixed" if han else "en"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error


def _decode(path: Path, content: bytes, form: type[_Form], where: str) -> _Form:
    try:
        return msgspec.json.decode(content, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}{where}: {error}") from error


def _audio(manifest: Path, name: str, where: str) -> Path:
    path = manifest.parent / name
    if not path.is_file():
        raise ManifestError(f"{manifest}{where}: audio {name!r} is not there")
    return path
