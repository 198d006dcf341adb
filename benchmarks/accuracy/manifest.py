"""What is measured: recordings, what was said in them and by whom.

Two forms, both with audio paths relative to the file itself:

- `*.jsonl`, one utterance a line: `{"audio": "a.flac", "text": "…", "language": "zh", "terms": ["…"]}`; `id`, `language`
  (a label that figures are grouped by), `terms` (glossary terms that are said) and `voice` may be left out;
- `*.json`, one meeting: `{"audio": "m.flac", "glossary": ["…"], "glossary_absent": ["…"], "turns": [{"start": 0.6,
  "end": 3.7, "speaker": "A", "text": "…"}]}`; for `cer` each turn is an utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

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
    """`text` was said in `audio`, between `start` and `end` seconds if given. `glossary` is that of its meeting or manifest."""

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
    """Of one or more files. `absent` are terms that are said nowhere in them."""

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
        meetings.append(Meeting(name, audio, tuple(Turn(turn.start, turn.end, turn.speaker) for turn in found.turns)))
        absent += found.glossary_absent
        for number, turn in enumerate(found.turns):
            if turn.end <= turn.start:
                raise ManifestError(f"{path}: turns[{number}] ends before it starts")
            if turn.text:
                said = tuple(term for term in found.glossary if term.lower() in turn.text.lower())
                utterances.append(
                    Utterance(
                        f"{name}/{number:03d}",
                        audio,
                        turn.text,
                        script(turn.text),
                        said,
                        found.glossary,
                        turn.start,
                        turn.end,
                    )
                )
    spoken = "\n".join(utterance.text.lower() for utterance in utterances)
    if wrong := [term for term in absent if term.lower() in spoken]:
        raise ManifestError(f"{wrong[0]!r} is listed as absent and is said")
    return Manifest(tuple(paths), tuple(utterances), tuple(meetings), tuple(dict.fromkeys(absent)))


def _lines(path: Path) -> list[Utterance]:
    rows = []
    for number, line in enumerate(_content(path).decode("utf-8", "replace").splitlines(), 1):
        if line.strip():
            where = f" line {number}"
            row = _decode(path, line.encode(), _Line, where)
            rows.append((row, _audio(path, row.audio, where), number))
    glossary = tuple(dict.fromkeys(term for row, _, _ in rows for term in row.terms))
    return [
        Utterance(
            row.id or f"{path.stem}/{number}", audio, row.text, row.language or script(row.text), row.terms, glossary
        )
        for row, audio, number in rows
    ]


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
    except msgspec.MsgspecError as error:
        raise ManifestError(f"{path}{where}: {error}") from error


def _audio(manifest: Path, name: str, where: str) -> Path:
    path = manifest.parent / name
    if not path.is_file():
        raise ManifestError(f"{manifest}{where}: audio {name!r} is not there")
    return path
