"""The page: figures and the text of `prose.toml` as Markdown. Only `read_prose` reads a file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from training.evaluate.document import Document, Measured

PROSE: Final = Path(__file__).with_name("prose.toml")
NOT_MEASURED: Final = "not measured on these weights"
NEVER_MEASURED: Final = "not measured"
GROUPS: Final = ("all", "without terms", "with terms", "zh", "en", "mixed")
SHOWN_ANSWER: Final = 80
Figures = Mapping[str, Any]


class ModelProse(msgspec.Struct, forbid_unknown_fields=True):
    """Text about a model. `not_shown` says what its figures do not show."""

    name: str
    format: str
    about: str
    not_shown: str


class MeasureProse(msgspec.Struct, forbid_unknown_fields=True):
    """Text about a measure. `data` describes the data and says why it is held out; `short` is the data's name.
    `not_shown` says what these figures do not show."""

    name: str
    model: str
    title: str
    short: str
    data: str
    not_shown: str


class Prose(msgspec.Struct, forbid_unknown_fields=True):
    """All text, in the order of the page."""

    introduction: str
    how: str
    models: list[ModelProse]
    measures: list[MeasureProse]


def read_prose(path: Path = PROSE) -> Prose:
    """Read the prose. Raises `OSError`, `tomllib.TOMLDecodeError` and `msgspec.ValidationError`."""
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Prose)


def render(document: Document, prose: Prose) -> str:
    """The page as Markdown. Raises ValueError if the prose lacks a model."""
    if wordless := set(document.models) - {model.name for model in prose.models}:
        raise ValueError(f"{PROSE.name} says nothing about {', '.join(sorted(wordless))}")
    there = [model for model in prose.models if model.name in document.models]
    parts = [prose.introduction.strip(), _overview(document, prose, there)]
    for model in there:
        parts += [f"## `{model.name}`", model.about.strip()]
        for measure in prose.measures:
            if measure.model == model.name:
                parts += _section(measure, document.current(measure.name))
    parts += ["## How this page is made", prose.how.strip(), _weights(document)]
    return "\n\n".join(parts) + "\n"


def headline(name: str, figures: Figures) -> str:
    """A measure's figures in a few words."""
    return _SHOWN[name][0](figures)


def _overview(document: Document, prose: Prose, there: Sequence[ModelProse]) -> str:
    rows = []
    for model in there:
        measures = [measure for measure in prose.measures if measure.model == model.name]
        told = "; ".join(
            f"{measure.short}: {headline(measure.name, found.figures)}"
            for measure in measures
            if (found := document.current(measure.name))
        )
        size = f"{document.models[model.name].bytes / 1e6:.1f} MB"
        rows.append(
            (
                f"`{model.name}`",
                model.format,
                size,
                told or (NOT_MEASURED if measures else NEVER_MEASURED),
                model.not_shown,
            )
        )
    return _table(("model", "format", "size", "on data that it was not trained on", "what that does not show"), rows)


def _section(measure: MeasureProse, found: Measured | None) -> list[str]:
    parts = [f"### {measure.title}", measure.data.strip()]
    if found is None:
        return [*parts, f"*{NOT_MEASURED.capitalize()}.*"]
    return [
        *parts,
        *_SHOWN[measure.name][1](found.figures),
        f"**Does not show:** {measure.not_shown.strip()}",
        f"`{found.command}`",
    ]


def _recogniser_headline(figures: Figures) -> str:
    groups = figures["groups"]
    told = f"CER {_percent(groups['all']['cer'])} of {groups['all']['utterances']} sentences"
    if "without terms" in groups:
        told += f", {_percent(groups['without terms']['cer'])} where no term is said"
    if speed := figures.get("speed"):
        told += f", {speed['cpu_seconds_a_second']:.4f} s of one core per second of audio"
    return told


def _recogniser(figures: Figures) -> list[str]:
    groups = {name: figures["groups"][name] for name in GROUPS if name in figures["groups"]}
    rows = [
        (
            name, group["utterances"], group["units"], _percent(group["cer"]), _interval(group["cer_interval"]),
            f"{group['substitutions']} / {group['insertions']} / {group['deletions']}",
        )
        for name, group in groups.items()
    ]  # fmt: skip
    parts = [_table(("sentences", "number", "characters", "CER", "95%", "substituted / inserted / deleted"), rows)]
    if speed := figures.get("speed"):
        language = figures["language"]
        parts += [
            f"Real-time factor {speed['cpu_seconds_a_second']:.4f}: seconds of CPU time per second of audio, one thread, "
            f"over {speed['audio_seconds']:.0f} s of audio, on {speed['machine']}.",
            f"The language mark is right in {language['right']} of {language['of']} Chinese and English sentences. "
            f"Emotion marks: {', '.join(figures['emotions'])}; event marks: {', '.join(figures['events'])}.",
        ]
    return parts


def _arm(arms: Iterable[Figures], arm: str, glossary: str, group: str) -> Figures | None:
    for one in arms:
        if (one["arm"], one["glossary"]) == (arm, glossary):
            found: Figures | None = one["groups"].get(group)
            return found
    return None


def _reviewed_in_words(arms: Sequence[Figures], group: str) -> str:
    before, rule, after = (_arm(arms, arm, "true", group) for arm in ("none", "rule", "lm+rule"))
    if before is None or rule is None or after is None:
        return ""
    return f"CER {_percent(before['cer'])} → {_percent(after['cer'])} (by rule alone {_percent(rule['cer'])})"


def _review_frozen_headline(figures: Figures) -> str:
    arms = figures["sentences"]["arms"]
    lines = _arm(arms, "none", "true", "with terms")
    return (
        f"{lines['utterances'] if lines else 0} sentences with unseen terms: {_reviewed_in_words(arms, 'with terms')}"
    )


def _review_frozen(figures: Figures) -> list[str]:
    rows = [
        row
        for name in ("sentences", "meetings")
        for group in ("with terms", "all")
        for row in _review_rows(figures[name]["arms"], group, f"{name}, {group}")
    ]
    unreadable = sum(figures[name]["unreadable"] for name in ("sentences", "meetings"))
    return [_table(_REVIEW_COLUMNS, rows), _unreadable(unreadable)]


_REVIEW_COLUMNS: Final = (
    *("lines", "arm", "CER with the true glossary", "change in points (relative), 95%", "better / worse"),
    *("change with an absent glossary", "numbers or negations changed"),
)


def _review_rows(arms: Sequence[Figures], group: str, shown: str) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    base = _arm(arms, "none", "true", group)
    for arm in ("none", "rule", "lm", "lm+rule"):
        found = _arm(arms, arm, "true", group)
        if base is None or found is None:
            continue
        lines = f"{shown} ({found['utterances']})"
        if arm == "none":
            rows.append((lines, arm, _percent(found["cer"]), "", "", "", ""))
            continue
        absent = _arm(arms, arm, "absent", group)
        points = found["cer"] - base["cer"]
        relative = f" ({100 * points / base['cer']:+.0f}%)" if base["cer"] else ""
        change = f"{_points(points)}{relative}, {_interval(found['difference_interval'])}"
        rows.append(
            (
                lines, arm, _percent(found["cer"]), change, f"{found['better']} / {found['worse']}",
                _points(absent["cer"] - base["cer"]) if absent else "",
                found["protected_changed"] + (absent["protected_changed"] if absent else 0),
            )
        )  # fmt: skip
    return rows


def _unreadable(count: int) -> str:
    return f"Answers of the model that were unreadable and therefore changed nothing: {count}."


def _review_bank_headline(figures: Figures) -> str:
    return f"{figures['review']['pairs']} lines: {_reviewed_in_words(figures['review']['arms'], 'all')}"


def _review_bank(figures: Figures) -> list[str]:
    review, summary, chat = figures["review"], figures["summary"], figures["chat"]
    rows = [row for group in ("with terms", "all") for row in _review_rows(review["arms"], group, group)]
    asked = [f"- {question} — {_shortened(answer)}" for question, answer in chat["answers"].items()]
    told = (
        f"Summary: {summary['parts']} parts of five lines contain {summary['expected']} decisions, tasks and questions. "
        f"The model found {summary['right']} of them with the right kind and line. "
        f"It wrote {summary['written']} items, {summary['quoted']} with a quote from the named line; "
        f"{summary['unreadable']} answers were unreadable."
    )
    says = (
        f"Chat: {chat['questions']} questions are worded otherwise than in training. In "
        f"{chat['says_that_it_is_a_demonstration']} answers the model says that it is a demonstration. Asked who it is:"
    )
    return [_table(_REVIEW_COLUMNS, rows), _unreadable(review["unreadable"]), told, says, "\n".join(asked)]


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    shown = flat if len(flat) <= SHOWN_ANSWER else flat[:SHOWN_ANSWER] + "…"
    return f"“{shown}”" if shown else "no answer"


def _der(meetings: Sequence[Figures]) -> float:
    total = sum(one["errors"]["total"] for one in meetings)
    wrong = sum(one["errors"][part] for one in meetings for part in ("missed", "false_alarm", "confusion"))
    return wrong / total if total else 0.0


def _speaker_headline(figures: Figures) -> str:
    unknown = [one for one in figures["meetings"] if not one["speakers_known"]]
    right = sum(one["found"] == one["speakers"] for one in unknown)
    return f"DER {_percent(_der(unknown))}, number of speakers right in {right} of {len(unknown)} meetings"


def _speaker(figures: Figures) -> list[str]:
    rows: list[tuple[object, ...]] = []
    for known in (False, True):
        meetings = [one for one in figures["meetings"] if one["speakers_known"] is known]
        told = "given" if known else "unknown"
        rows += [
            (
                one["meeting"],
                told,
                f"{one['errors']['total']:.0f} s",
                _percent(_der([one])),
                f"{one['found']} / {one['speakers']}",
            )
            for one in meetings
        ]
        seconds = sum(one["errors"]["total"] for one in meetings)
        rows.append(("all", told, f"{seconds:.0f} s", _percent(_der(meetings)), ""))
    return [
        _table(("meeting", "number of speakers", "speech scored", "DER", "found / spoke"), rows),
        f"Collar {figures['collar_seconds']} s around each boundary. There is no interval, because the meetings are too few.",
    ]


def _embedding_headline(figures: Figures) -> str:
    found = figures["all"]
    return f"{_percent(found['top_1'])} of {found['queries']} queries rank their paraphrase first of {figures['candidates']}"


def _embedding(figures: Figures) -> list[str]:
    rows = [
        (name, found["queries"], _percent(found["top_1"]), _interval(found["interval"]), _percent(found["top_5"]))
        for name, found in figures.items()
        if name != "candidates"
    ]
    return [_table(("direction", "queries", "first", "95%", "among the first five"), rows)]


def _vision_headline(figures: Figures) -> str:
    found = figures["exact"]["all fonts"]["all"]
    return f"{_percent(found['share'])} of {found['of']} rendered lines read exactly"


def _vision(figures: Figures) -> list[str]:
    rows = [
        (fonts, kind, found["of"], _percent(found["share"]), _interval(found["interval"]))
        for fonts, kinds in figures["exact"].items()
        for kind, found in kinds.items()
    ]
    return [_table(("fonts", "text", "number", "exact", "95%"), rows)]


_SHOWN: Final[dict[str, tuple[Callable[[Figures], str], Callable[[Figures], list[str]]]]] = {
    "recogniser/frozen": (_recogniser_headline, _recogniser),
    "recogniser/spoken": (_recogniser_headline, _recogniser),
    "review/frozen": (_review_frozen_headline, _review_frozen),
    "review/bank": (_review_bank_headline, _review_bank),
    "speaker/frozen": (_speaker_headline, _speaker),
    "embedding/paraphrases": (_embedding_headline, _embedding),
    "vision/lines": (_vision_headline, _vision),
}
"""For each measure, functions that show its figures in a few words and as the parts of its section."""


def _weights(document: Document) -> str:
    rows = [
        (f"`{model}/{name}`", f"{weights.bytes:,}", f"`{weights.sha256}`")
        for model, entry in sorted(document.models.items())
        for name, weights in entry.weights.items()
    ]
    return _table(("weights", "bytes", "SHA-256"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(change: float) -> str:
    return f"{100 * change:+.2f}"


def _interval(bounds: Sequence[float]) -> str:
    return f"{100 * bounds[0]:.1f} … {100 * bounds[1]:.1f}"
