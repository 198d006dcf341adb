"""Try random schemas and regular expressions at temperature 2, in batches beside free rows: `make bench-structured`.

    python -m benchmarks.structured [--schemas 1000] [--expressions 300] [--model FOLDER] [--json FILE]

`jsonschema` or `re` checks each answer that ends by itself. The model has random weights, so only the form keeps its
answers in shape, and its logits include ids that its tokenizer lacks. To find the cost of a form, a batch whose rows
all have one and a batch of as many free rows run in turn in this process. The mask alone is also measured at 152k
tokens. The exit status is 1 if an answer breaks its form or does not end.
"""

from __future__ import annotations

import argparse
import json
import platform
import queue
import re
import statistics
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np

from benchmarks.kv.checkpoints import checkpoint
from benchmarks.structured.forms import random_expressions, random_schemas
from engine.fleet.protocol import EventFrame
from engine.types import Failed, Finished, GenerationRequest, Message, Part, SamplingParams, Structure, TextDelta
from engine.worker.forms.form import Mask
from engine.worker.forms.grammar import compile_structure
from engine.worker.forms.vocabulary import wrapped_tokenizer
from engine.worker.loop import Loop
from engine.worker.model import Loaded
from engine.worker.runtime.loader import load
from engine.worker_config import BatchLimits, WorkerConfig

ROWS, FREE_ROWS = 12, 4
MOST_TOKENS = 1000
END_BIAS = 18.0
"""Added to the logit of the end. Without it a random model rarely ends an unbounded repetition."""
TIMED_TOKENS, ROUNDS = 120, 5
LARGE_VOCABULARY = 151_936
NUMBERS: Final = {"type": "array", "items": {"enum": list(range(10))}, "minItems": 300, "maxItems": 300}
"""An answer that is longer than the timed part."""


@dataclass
class Reply:
    """The outcome of one request."""

    text: str = ""
    tokens: int = 0
    reason: str = ""
    refused: str = ""


@dataclass
class Recorder:
    """The sending side of a channel that keeps the answers."""

    answers: dict[str, Reply] = field(default_factory=dict)

    def send(self, message: Any) -> None:
        for event in message.events if isinstance(message, EventFrame) else ():
            reply = self.answers.setdefault(event.id, Reply())
            match event:
                case TextDelta():
                    reply.text += event.text
                    reply.tokens += 1
                case Finished():
                    reply.text += event.text
                    reply.reason = event.reason
                case Failed():
                    reply.reason, reply.refused = "failed", event.message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--expressions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a chat model's folder; by default a random checkpoint is made")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/structured.json"), help="write the figures to this file"
    )
    arguments = parser.parse_args()
    begun = time.monotonic()
    loaded = load(arguments.model or checkpoint("nano"), "chat")
    schemas = random_schemas(arguments.schemas, arguments.seed)
    expressions = random_expressions(arguments.expressions, arguments.seed)
    forms = [Structure("json_schema", json.dumps(schema), "response_format") for schema in schemas]
    forms += [Structure("regex", expression, "guided_regex") for expression in expressions]
    milliseconds = compile_milliseconds(loaded, forms)
    answers = [*replies_to(loaded, forms)]
    found: dict[str, Any] = {
        "schemas": judged(schemas, answers[: len(schemas)], follows_schema),
        "expressions": judged(expressions, answers[len(schemas) :], matches),
        "compile_milliseconds": {
            "schemas": quantiles(milliseconds[: len(schemas)]),
            "expressions": quantiles(milliseconds[len(schemas) :]),
        },
        "step_milliseconds": {f"{rows} rows": step_milliseconds(loaded, rows) for rows in (1, 8)},
        "mask_milliseconds_at_152k": mask_milliseconds(),
    }
    print(json.dumps(found, indent=1, ensure_ascii=False))
    machine = {"machine": platform.machine(), "system": platform.system(), "device": str(mx.default_device())}
    settings = {"seed": arguments.seed, "rows": ROWS, "free_rows": FREE_ROWS, "temperature": 2.0, **machine}
    record = {"settings": settings, "run_seconds": round(time.monotonic() - begun), **found}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wrong = found["schemas"]["wrong"] + found["schemas"]["cut"] + found["expressions"]["wrong"]
    return 1 if wrong + [form for form in found["expressions"]["cut"] if not _ENDLESS.search(form)] else 0


_ENDLESS = re.compile(r"[+*]|,\}")
"""Finds expressions with an unbounded repetition: their answers may have any length."""

# Answers ----------------------------------------------------------------------------------------------------------------


def request(
    name: str, loaded: Loaded, structure: Structure | None, *, seed: int, tokens: int = MOST_TOKENS
) -> GenerationRequest:
    bias = {} if structure is None else dict.fromkeys(loaded.eos_ids, END_BIAS)
    return GenerationRequest(
        id=name,
        model="m",
        messages=(Message("user", (Part("text", text=f"say something, number {seed}"),)),),
        sampling=SamplingParams(temperature=2.0, seed=seed, logit_bias=bias),
        max_tokens=tokens,
        structure=structure,
    )


def replies_to(loaded: Loaded, forms: Sequence[Structure]) -> Iterator[Reply]:
    """Answers to all forms, in order. `ROWS` of them run at a time, and the next joins as soon as one ends. Free rows
    run beside them throughout."""
    recorder, mailbox = Recorder(), queue.SimpleQueue[Any]()
    channel: Any = recorder
    batch = BatchLimits(max_rows=ROWS + FREE_ROWS, chunk_tokens=4096)
    loop = Loop(loaded, channel, mailbox, WorkerConfig(model="m", path=b"m", batch=batch))
    sent = free = ended = 0
    while ended < len(forms):
        replies = recorder.answers
        ended = sum(bool(replies[str(i)].reason) for i in range(sent) if str(i) in replies)
        while sent < len(forms) and sent - ended < ROWS:
            mailbox.put(request(str(sent), loaded, forms[sent], seed=sent))
            sent += 1
        names = [f"free{i}" for i in range(free)]
        while sum(not (name in replies and replies[name].reason) for name in names) < FREE_ROWS:
            mailbox.put(request(f"free{free}", loaded, None, seed=free, tokens=500))
            names.append(f"free{free}")
            free += 1
        loop.tick()
    for i in range(len(forms)):
        yield recorder.answers[str(i)]


def judged(forms: Sequence[Any], answers: Sequence[Reply], is_right: Any) -> dict[str, Any]:
    """Counts, and every wrong answer in full."""
    refused = Counter(reply.refused for reply in answers if reply.refused)
    cut = [form for form, reply in zip(forms, answers, strict=True) if reply.reason == "length"]
    ended = [(form, reply) for form, reply in zip(forms, answers, strict=True) if reply.reason == "stop"]
    wrong = [{"form": form, "answer": reply.text} for form, reply in ended if not is_right(form, reply.text)]
    return {
        "asked": len(forms),
        "refused": sum(refused.values()),
        "accepted": len(forms) - sum(refused.values()),
        "right": len(ended) - len(wrong),
        "wrong": wrong,
        "cut": cut,
        "reasons": dict(refused.most_common(10)),
        "tokens_an_answer": round(statistics.mean([reply.tokens for reply in answers] or [0]), 1),
        "different_answers": len({reply.text for _, reply in ended}),
    }


def follows_schema(schema: Any, text: str) -> bool:
    import jsonschema

    checker = jsonschema.FormatChecker(("date", "uuid", "ipv4", "ipv6"))
    try:
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def matches(expression: str, text: str) -> bool:
    """Whether Python's `re` matches. The grammar's Unicode is newer than that of some Pythons: U+1CCF3 is a digit for
    the one and unassigned for the other. Characters that Python does not know are therefore also tried as digits."""
    known = "".join("0" if unicodedata.category(character) == "Cn" else character for character in text)
    return any(re.fullmatch(expression, one) is not None for one in (text, known))


# Times ------------------------------------------------------------------------------------------------------------------


def compile_milliseconds(loaded: Loaded, forms: Sequence[Structure]) -> list[float]:
    tokenizer, found = wrapped_tokenizer(loaded), []
    for form in forms:
        begun = time.perf_counter()
        compile_structure(tokenizer, form)
        found.append((time.perf_counter() - begun) * 1000)
    return found


def quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shown = {"p50": np.quantile(values, 0.5), "p99": np.quantile(values, 0.99), "most": max(values)}
    return {name: round(float(value), 2) for name, value in shown.items()}


def step_milliseconds(loaded: Loaded, rows: int) -> dict[str, float]:
    """One decode step of `rows` rows, free and with a form (medians of paired runs), and the extra cost per token."""
    form = Structure("json_schema", json.dumps(NUMBERS), "response_format")
    seconds_a_step(loaded, rows, form)  # warm-up
    pairs = [(seconds_a_step(loaded, rows, None), seconds_a_step(loaded, rows, form)) for _ in range(ROUNDS)]
    free, bound = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    more = statistics.median((second - first) * 1000 / rows for first, second in pairs)
    return {"free": round(free, 3), "bound": round(bound, 3), "more_a_token": round(more, 3)}


def seconds_a_step(loaded: Loaded, rows: int, structure: Structure | None) -> float:
    recorder, mailbox = Recorder(), queue.SimpleQueue[Any]()
    channel: Any = recorder
    batch = BatchLimits(max_rows=rows, chunk_tokens=4096)
    loop = Loop(loaded, channel, mailbox, WorkerConfig(model="m", path=b"m", batch=batch))
    for i in range(rows):
        mailbox.put(request(str(i), loaded, structure, seed=i, tokens=TIMED_TOKENS + 50))
    while len(recorder.answers) < rows or min(reply.tokens for reply in recorder.answers.values()) < 5:
        loop.tick()
    begun = time.perf_counter()
    for _ in range(TIMED_TOKENS):
        loop.tick()
    return (time.perf_counter() - begun) / TIMED_TOKENS


def mask_milliseconds() -> float:
    """The median time from the bits of one row to its masked logits, for a large vocabulary."""
    mask, bits = Mask(LARGE_VOCABULARY), _Bits()
    logits = mx.random.normal((1, LARGE_VOCABULARY))
    mx.eval(logits)
    matcher: Any = bits
    found = []
    for _ in range(50):
        begun = time.perf_counter()
        mx.eval(logits + mx.array(mask.of(matcher, LARGE_VOCABULARY)))
        found.append((time.perf_counter() - begun) * 1000)
    return round(statistics.median(found), 3)


class _Bits:
    """A matcher that leaves the bits as they are."""

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        return None


if __name__ == "__main__":
    sys.exit(main())
