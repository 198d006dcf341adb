"""The measures. Each returns figures as plain data. They run in the project's environment, without torch."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import models
from benchmarks.accuracy import manifest
from benchmarks.accuracy.manifest import Utterance
from training.evaluate import document
from training.evaluate.session import Session, Unmeasured

RECOGNISER, REVIEWER, SPEAKER = "duet-tiny-asr", "duet-tiny-chat", "duet-tiny-speaker"
EMBEDDING, VISION = "duet-tiny-embed", "duet-tiny-vl"
ARMS: Final = ("none", "rule", "lm", "lm+rule")
REVIEW_PAIRS: Final = 200
"""Number of the bank's held-out pairs. They take about two minutes."""
VISION_LINES, SEED = 300, 1


@dataclass(frozen=True)
class Result:
    """The result of a measure. `data` has the SHA-256 of its data, by name."""

    figures: dict[str, Any]
    data: dict[str, str]


@dataclass(frozen=True)
class Measure:
    """`models` are the models that the figures depend on, `command` is the command for a reader. `run` raises
    `Unmeasured` if an input is missing, and passes on errors of the models and commands that it uses."""

    models: tuple[str, ...]
    command: str
    run: Callable[[Session], Result]


def recogniser_spoken(session: Session) -> Result:
    """CER on free sentences in the development voices, with speed and marks."""
    from training.recogniser import spoken

    if shutil.which("espeak-ng") is None:
        raise Unmeasured("needs espeak-ng: apt-get install espeak-ng")
    path = spoken.write(session.inputs.work / "spoken")
    result = session.bench("cer", [path], "--arms", "none")
    return _recognised(result, heard(models.EMBEDDED / RECOGNISER, manifest.read([path]).utterances))


def recogniser_frozen(session: Session) -> Result:
    return _recognised(session.bench("cer", [session.inputs.sentences()], "--arms", "none"), {})


def _recognised(result: dict[str, Any], more: dict[str, Any]) -> Result:
    figures = {"normaliser": result["normaliser"], "groups": document.cer_arms(result["arms"])[0]["groups"]}
    return Result(figures | more, result["manifests"] | {"audio": result["audio"]})


def heard(folder: Path, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """The recogniser's speed, and the marks that it sets.

    `speed` is CPU time, because the clock would count other work on the machine too. With one thread an idle core takes
    as long by the clock. `language` counts the sentences in one language whose mark names that language.
    """
    from speech.decoding.trusted import samples
    from speech.recognisers.child import sensevoice
    from speech.recognisers.child.messages import Recognise, RecogniseFailed
    from speech.recognisers.sensevoice import MAX_CLIP_SECONDS
    from speech.splitter import SAMPLE_RATE

    clips = [samples(utterance.audio, max_seconds=MAX_CLIP_SECONDS) for utterance in utterances]
    recogniser = sensevoice.load(folder, 1)
    request = Recognise("speed", tuple(np.asarray(clip, dtype="<f4").tobytes() for clip in clips), True)
    began = time.process_time()
    answer = sensevoice.recognise(recogniser, request)
    spent = time.process_time() - began
    if isinstance(answer, RecogniseFailed):
        raise RuntimeError(answer.message)  # noqa: TRY004 - the model is wrong, not a type
    audio_seconds = sum(map(len, clips)) / SAMPLE_RATE
    marked = [
        segment.language == utterance.language
        for utterance, segment in zip(utterances, answer.segments, strict=True)
        if utterance.language in ("zh", "en")
    ]
    return {
        "speed": {
            "audio_seconds": round(audio_seconds, 1),
            "cpu_seconds_a_second": spent / audio_seconds,
            "machine": f"{platform.system()} {platform.machine()}",
        },
        "language": document.counted(sum(marked), len(marked)),
        "emotions": sorted({segment.emotion or "none" for segment in answer.segments}),
        "events": sorted({segment.event or "none" for segment in answer.segments}),
    }


def review_frozen(session: Session) -> Result:
    """Review of the frozen set's sentences and meetings, with the true glossary and with the meetings' absent terms."""
    sentences, meetings = session.inputs.sentences(), session.inputs.meetings()
    absent = _absent(meetings, session.inputs.work / "absent.json")
    found: dict[str, Any] = {}
    data: dict[str, str] = {}
    for name, manifests in (("sentences", [sentences, absent]), ("meetings", meetings)):
        arguments = ("--review-model", REVIEWER, "--arms", ",".join(ARMS))
        result = session.bench("cer", manifests, *arguments, engine=True)
        unreadable = result["settings"]["unreadable_answers"]
        found[name] = {"unreadable": unreadable, "arms": document.cer_arms(result["arms"])}
        data |= {file: digest for file, digest in result["manifests"].items() if file != absent.name}
    return Result(found, data)


def _absent(meetings: list[Path], target: Path) -> Path:
    """A manifest with only the absent terms of the meetings, because the sentences have none of their own."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in meetings]
    terms = [term for meeting in read for term in meeting.get("glossary_absent", ())]
    audio = str(meetings[0].parent.absolute() / read[0]["audio"])
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {"audio": audio, "turns": [], "glossary_absent": list(dict.fromkeys(terms))}
    target.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return target


def review_bank(session: Session) -> Result:
    """Review of held-out mistakes, summaries of hand-written lines, and answers to questions about itself."""
    from training.evaluate import review

    bank = session.inputs.bank
    if not any(bank.glob("*.jsonl")):
        raise Unmeasured("needs --bank, the mistakes that training.review.bank wrote")
    pairs, elsewhere = review.read(bank, REVIEW_PAIRS)
    found = asyncio.run(review.evaluate(session.settings(), pairs, elsewhere, SEED))
    found["chat"]["answers"] = {question: found["chat"]["answers"][question] for question in review.WHO}
    return Result(found, {"bank": document.files_digest(sorted(bank.glob("*.jsonl")))})


def speaker_frozen(session: Session) -> Result:
    result = session.bench("der", session.inputs.meetings())
    figures = {"collar_seconds": result["settings"]["collar_seconds"], "meetings": result["meetings"]}
    return Result(figures, result["manifests"] | {"audio": result["audio"]})


def embedding_paraphrases(session: Session) -> Result:
    """Runs in a process of its own, as MLX does in the product."""
    figures = json.loads(session.python("training.evaluate.embedding"))
    path = Path(__file__).parents[1] / "paraphrases.txt"
    return Result(figures, {path.name: document.file_digest(path)})


def vision_lines(session: Session) -> Result:
    """Reading of rendered lines through `/v1/chat/completions`."""
    from training.vision import evaluate, rendering, texts

    try:
        rendering.require_fonts()
        words = document.file_digest(texts.WORDS)
    except FileNotFoundError as error:
        raise Unmeasured(str(error)) from error
    stack = session.stack()
    with stack.client(stack.engine_url) as client:
        readings = evaluate.evaluate(client, VISION_LINES, SEED)
    groups: dict[str, dict[str, Any]] = {}
    for fonts in ("all fonts", *evaluate.FONTS):
        for kind in ("all", *evaluate.KINDS):
            chosen = [one.exact for one in readings if fonts in (one.fonts, "all fonts") and kind in (one.kind, "all")]
            groups.setdefault(fonts, {})[kind] = document.counted(sum(chosen), len(chosen))
        each = [right for one in readings if fonts in (one.fonts, "all fonts") for right in one.words]
        groups[fonts]["each word of all lines"] = document.counted(sum(each), len(each))
    return Result({"seed": SEED, "exact": groups}, {texts.WORDS.name: words})


MEASURES: Final = {
    "recogniser/frozen": Measure(
        (RECOGNISER,), "duet bench cer --embedded --manifest EVAL/sentences.jsonl --arms none", recogniser_frozen
    ),
    "recogniser/spoken": Measure(
        (RECOGNISER,),
        "python -m training.recogniser.spoken --out SPOKEN && "
        "duet bench cer --embedded --manifest SPOKEN/spoken.jsonl --arms none",
        recogniser_spoken,
    ),
    "review/frozen": Measure(
        (RECOGNISER, REVIEWER),
        "duet up --embedded & duet bench cer --embedded --manifest EVAL/sentences.jsonl (and each meeting's EVAL/….json)",
        review_frozen,
    ),
    "review/bank": Measure(
        (REVIEWER,), f"python -m training.evaluate.review --bank BANK --pairs {REVIEW_PAIRS}", review_bank
    ),
    "speaker/frozen": Measure(
        (SPEAKER,), "duet bench der --embedded --manifest EVAL/….json (each meeting)", speaker_frozen
    ),
    "embedding/paraphrases": Measure(
        (EMBEDDING,), "python -m training.evaluate.embedding", embedding_paraphrases
    ),
    "vision/lines": Measure(
        (VISION,), f"python -m training.vision.evaluate --count {VISION_LINES}", vision_lines
    ),
}  # fmt: skip
"""The measures by group and data. `--only` takes a group or a whole name."""
