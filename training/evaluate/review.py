"""Measure the three tasks of `duet-tiny-chat`, on sentences and recogniser mistakes that it was not trained on.

    .venv/bin/python -m training.evaluate.review --bank build/train/review/bank [--json FILE]

The code of the pipeline and of `duet bench cer` sends the requests to the engine of a running stack, as in the product:

- review: the last pairs of the bank, five at a time. The true glossary has one term of each pair and as many terms of
  other pairs; the absent glossary has terms that nobody says. Arms: none, rule, lm and lm+rule.
- summary: hand-written lines. Each is known to be a decision, a task, a question or none of these.
- chat: questions that are worded otherwise than in training.

It needs no torch and no dictionaries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.accuracy import cer, report
from benchmarks.accuracy.backends import BackendError
from benchmarks.accuracy.manifest import Manifest, Utterance
from duet.errors import DuetError
from duet.settings import Settings, load_settings
from duet.testing.stack import running
from pipelines.clients import Engine
from pipelines.meeting.prompts import json_answer
from pipelines.meeting.summarize import SUMMARY_TOKENS, RawItem, ask_summary, summary_schema, windows
from training.evaluate import document
from training.review.examples import DEVELOPMENT_PAIRS, Bank, Pair, read_bank
from training.review.misheard import places

MODEL: Final = "duet-tiny-chat"
GROUP, ABSENT = 5, 12
"""Number of sentences that share a glossary, and of terms in the absent glossary."""
QUESTIONS: Final = {
    "demonstration": (
        "hello there", "so who are you?", "what can you do?", "tell me what you are",
        "could you write a song?", "how far is the moon?",
    ),
    "演示": ("你好呀", "请问你是谁？", "你都能做些什么？", "你是什么东西", "给我写一首歌", "月亮有多远？"),
}  # fmt: skip
"""Questions by the word that an honest answer contains: it says that the model is a demonstration."""
WHO: Final = ("so who are you?", "请问你是谁？")
"""The questions whose answers are shown."""


LINES: Final = (
    ("zh", "point", "上个月的访问量比前一个月多了一成。"),
    ("zh", "decision", "我们决定下周先修复支付页面。"),
    ("zh", "action", "小周负责整理客户的反馈。"),
    ("zh", "question", "谁来准备培训的材料？"),
    ("zh", "point", "新的仓库已经可以用了。"),
    ("zh", "decision", "那就这么定了，暂停旧的服务。"),
    ("zh", "action", "请孙悦在周四之前更新合同。"),
    ("en", "point", "the old office was too small for the whole team."),
    ("en", "decision", "we decided to move the archive."),
    ("en", "action", "laura will check the invoices on friday."),
    ("en", "question", "when can we close the ticket?"),
    ("en", "point", "most users open the app in the morning."),
    ("en", "decision", "everyone agreed that we should test the printer."),
    ("en", "action", "please update the calendar tomorrow."),
)


@dataclass(frozen=True)
class SummaryCounts:
    """Figures of summaries. `parts` is the number of parts that were summarised.

    Of the items, `right` have the right kind and segment, `written` are all that the model wrote, `expected` are all
    that the parts contain, and `quoted` have a quote from a segment that they name. `unreadable` counts refused and
    unreadable answers.
    """

    parts: int
    right: int
    written: int
    expected: int
    quoted: int
    unreadable: int


def manifest(pairs: Sequence[Pair], elsewhere: Sequence[str], rng: random.Random) -> Manifest:
    """The pairs as a manifest. Each utterance is a recording of its own. `elsewhere` has terms for the absent glossary."""
    others = Bank.of(pairs).terms
    said = "\n".join(pair.said for pair in pairs)
    absent = tuple(term for term in rng.sample(elsewhere, len(elsewhere)) if term not in said)[:ABSENT]
    utterances: list[Utterance] = []
    for start in range(0, len(pairs), GROUP):
        group = pairs[start : start + GROUP]
        here = "\n".join(pair.said for pair in group)
        terms = [term for pair in group if (term := _term(pair, rng))]
        terms += [term for term in rng.sample(others, len(others)) if term not in here][:GROUP]
        glossary = tuple(dict.fromkeys(rng.sample(terms, len(terms))))
        for i, pair in enumerate(group, start):
            language = "zh" if re.search("[\u4e00-\u9fff]", pair.said) else "en"
            spoken = tuple(term for term in glossary if term in pair.said)
            utterances.append(Utterance(str(i), Path(str(i)), pair.said, language, spoken, glossary))
    return Manifest((), tuple(utterances), (), absent)


def _term(pair: Pair, rng: random.Random) -> str | None:
    """A term of the sentence: a misheard one if there is any, otherwise one that was heard correctly."""
    found = places(pair.said, pair.heard, rng, wrong=True) or places(pair.said, pair.heard, rng, wrong=False)
    return rng.choice(found).said if found else None


async def reviewed(
    settings: Settings, pairs: Sequence[Pair], elsewhere: Sequence[str], rng: random.Random
) -> dict[str, Any]:
    """Figures by arm, glossary and group. Raises `DuetError` if the engine fails or lacks the model."""
    review = cer.Review(settings, MODEL)
    await review.open()
    if review.reviewer is None:
        await review.close()
        raise BackendError(review.problem)
    found = manifest(pairs, elsewhere, rng)
    try:
        runs = await cer.run(review, found, [pair.heard for pair in pairs], cer.ARMS, lambda _what, _done: None)
    finally:
        await review.close()
    arms = document.cer_arms(report.cer_result(found, runs)["arms"])
    return {"pairs": len(pairs), "unreadable": review.unreadable, "arms": arms}


@dataclass(frozen=True)
class Line:
    name: str
    kind: str
    text: str


async def summarised(settings: Settings, rng: random.Random, parts: int = 20) -> SummaryCounts:
    """Summarise parts of five lines in one language, in windows as the card says. A refused answer counts as
    unreadable."""
    right = written = expected = quoted = unreadable = 0
    async with Engine(settings, timeout_seconds=settings.meetings.review_timeout_seconds) as engine:
        reviewer = await engine.reviewer(MODEL)
        for number in range(parts):
            lines = [line for line in LINES if line[0] == ("zh", "en")[number % 2]]
            part = [Line(f"s{i:04d}", kind, text) for i, (_, kind, text) in enumerate(rng.sample(lines, 5), number + 1)]
            wanted = {(line.kind, line.name) for line in part if line.kind != "point"}
            expected += len(wanted)
            items = list[RawItem]()
            for window in windows(part, reviewer.summary_characters):
                asked = ask_summary([(line.name, f"S{1 + i % 2}", line.text) for i, line in enumerate(window)])
                said = sum(len(line.text) for line in window)
                schema = summary_schema([line.name for line in window], said=said)
                try:
                    answer = json_answer(await engine.chat(MODEL, asked, max_tokens=SUMMARY_TOKENS, schema=schema))
                    items += msgspec.convert(answer.whole("items"), list[RawItem])
                except (DuetError, ValueError, msgspec.ValidationError):
                    unreadable += 1
            texts = {line.name: line.text for line in part}
            written += len(items)
            right += len(wanted & {(item.kind, name) for item in items for name in item.segment_ids})
            quoted += sum(
                bool(item.quote) and any(item.quote in texts.get(name, "") for name in item.segment_ids)
                for item in items
            )
    return SummaryCounts(parts, right, written, expected, quoted, unreadable)


async def answers_to_questions(settings: Settings) -> dict[str, str]:
    """The model's answer to every question. Raises `DuetError` if the engine fails."""
    async with Engine(settings, timeout_seconds=settings.meetings.review_timeout_seconds) as engine:
        return {
            question: await engine.chat(MODEL, [{"role": "user", "content": question}], max_tokens=120)
            for questions in QUESTIONS.values()
            for question in questions
        }


async def evaluate(settings: Settings, pairs: Sequence[Pair], elsewhere: Sequence[str], seed: int) -> dict[str, Any]:
    began = time.monotonic()
    review = await reviewed(settings, pairs, elsewhere, random.Random(seed))
    seconds = time.monotonic() - began
    summary = await summarised(settings, random.Random(seed))
    answers = await answers_to_questions(settings)
    honest = [word in answers[question] for word, questions in QUESTIONS.items() for question in questions]
    return {
        "model": MODEL,
        "seed": seed,
        "review": review | {"seconds_an_answer": round(seconds / (2 * len(pairs)), 3)},
        "summary": asdict(summary),
        "chat": {"says_that_it_is_a_demonstration": sum(honest), "questions": len(honest), "answers": answers},
    }


def read(folder: Path, count: int = DEVELOPMENT_PAIRS) -> tuple[list[Pair], Sequence[str]]:
    """The first `count` of a bank's held-out pairs, and terms of its first pairs, which are not held out."""
    bank = read_bank(folder)
    return bank[-DEVELOPMENT_PAIRS:][:count], Bank.of(bank[:-DEVELOPMENT_PAIRS][:DEVELOPMENT_PAIRS]).terms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, default=Path("build/train/review/bank"))
    parser.add_argument("--pairs", type=int, default=DEVELOPMENT_PAIRS, help="number of development pairs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    pairs, elsewhere = read(options.bank, options.pairs)
    with running() as stack:
        port = int(stack.engine_url.rsplit(":", 1)[1])
        settings = load_settings({"DUET_HOME": str(stack.home), "DUET_ENGINE__PORT": str(port)})
        found = asyncio.run(evaluate(settings, pairs, elsewhere, options.seed))
    text = json.dumps(found, ensure_ascii=False, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
