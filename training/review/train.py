"""Train the review, summary and chat model on the prompts of the pipeline.

    python -m training.review.bank && python -m training.review.train --out models/embedded/duet-tiny-chat

The loss is cross-entropy on the answers alone. The system prompts are long and constant, so each is one token. The
initial weights can already compare sounds and copy (`start`), and the first steps are drills of just that. A step takes
about 0.3 s on an otherwise idle core; training takes two hours.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from training import steps, tokeniser
from training.qwen3 import Qwen3
from training.review.examples import DEVELOPMENT_PAIRS, FRAMES, PROMPTS, Author, Bank, Example, Task, read_bank
from training.review.start import prepare

WORK: Final = Path("build/train/review")
CONTEXT: Final = 2048
STEPS: Final = 21_500
PEAK_RATE: Final = 1.5e-3
ROWS: Final[dict[Task, int]] = {"drill": 24, "review": 24, "summary": 16, "chat": 24}
SHARES: Final[dict[Task, float]] = {"review": 0.64, "summary": 0.3, "chat": 0.06}
DRILLED_UNTIL: Final = 0.5
"""The share of all steps in which some reviews are drills. At first nearly all are, at its end none."""
MARKED_WEIGHT: Final = 3.0
STEPS_PER_EXAMPLES: Final = 4
"""Examples are made for two steps and used twice, because making one takes as long as learning from it."""
IGNORED: Final = -100


def config(vocabulary: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": vocabulary, "hidden_size": 192,
        "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 48,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
        "hidden_act": "silu", "attention_bias": False, "use_sliding_window": False, "torch_dtype": "float16", "eos_token_id": end,
    }  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """`ids`, `targets` (`IGNORED` outside of answers) and `weights`, each [B, T]."""

    ids: Tensor
    targets: Tensor
    weights: Tensor


class Encoder:
    """Turns examples into token ids, in the format of the chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.end = tokenizer.token_to_id(tokeniser.END)

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def batch(self, examples: list[Example]) -> Batch:
        rows = [self._row(example) for example in examples]
        longest = max(len(ids) for ids, _, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        targets = torch.full((len(rows), longest), IGNORED)
        weights = torch.zeros(len(rows), longest)
        for i, (prompt, answer, weight) in enumerate(rows):
            ids[i, : len(prompt)] = torch.tensor(prompt)
            targets[i, len(prompt) - len(answer) : len(prompt)] = torch.tensor(answer)
            weights[i, len(prompt) - len(answer) : len(prompt)] = torch.tensor(weight)
        return Batch(ids, targets, weights)

    def _row(self, example: Example) -> tuple[list[int], list[int], list[float]]:
        """The ids without the last answer token, the answer's ids (each is the target of the position before it), and
        their weights."""
        prompt = "".join(_turn(turn["role"], turn["content"]) for turn in example.messages)
        encoded = self._tokenizer.encode(example.answer, add_special_tokens=False)
        hard = [span for text in example.marked for span in _spans(example.answer, text)]
        weights = [
            MARKED_WEIGHT if any(start < last and end > first for first, last in hard) else 1.0
            for start, end in encoded.offsets
        ]
        answer = [*encoded.ids, self.end]
        if weights and "segments" in example.answer:
            weights[1 if len(weights) > 1 else 0] = MARKED_WEIGHT  # this token decides whether anything is corrected
        return [*self.ids(prompt + f"{tokeniser.START}assistant\n"), *encoded.ids], answer, [*weights, 1.0]


def _turn(role: str, content: str) -> str:
    return f"{tokeniser.START}{role}\n{content}{tokeniser.END}\n"


def _spans(text: str, part: str) -> list[tuple[int, int]]:
    found, start = [], text.find(part)
    while start >= 0:
        found.append((start, start + len(part)))
        start = text.find(part, start + 1)
    return found


class Trainer:
    def __init__(self, model: Qwen3, encoder: Encoder, bank: Bank, total_steps: int) -> None:
        self._model, self._encoder, self._bank, self._total = model, encoder, bank, total_steps

    def loss(self, step: int) -> Tensor:
        batch = self._batches(step // STEPS_PER_EXAMPLES)[step % 2]
        logits, targets, weights = answer_logits(self._model, batch)
        return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()

    @lru_cache(maxsize=1)  # noqa: B019 - the trainer lives as long as the process
    def _batches(self, number: int) -> tuple[Batch, Batch]:
        """Two batches of one task, shorter and longer examples: rows of similar length need little padding."""
        rng = random.Random(steps.seed_of_step(number))
        done = STEPS_PER_EXAMPLES * number / self._total
        task = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if task == "review" and rng.random() < 0.9 * (1 - done / DRILLED_UNTIL):
            task = "drill"
        author = Author(rng, self._bank, simulated=0.6 - 0.4 * done)
        made = sorted((author.example(task) for _ in range(2 * ROWS[task])), key=_length)
        return self._encoder.batch(made[: ROWS[task]]), self._encoder.batch(made[ROWS[task] :])


def _length(example: Example) -> int:
    """The length of the request alone. With the answer's length too, examples without corrections would fill batches of
    their own and outweigh the others."""
    return sum(len(message["content"]) for message in example.messages)


def answer_logits(model: Qwen3, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The logits [N, V], targets [N] and weights [N] of all answer tokens in the batch."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(batch.ids)
        chosen = batch.targets != IGNORED
        logits = hidden[chosen] @ model.embed_tokens.weight.T.to(hidden.dtype)
    return logits.float(), batch.targets[chosen], batch.weights[chosen]


def exact(model: Qwen3, encoder: Encoder, examples: list[Example]) -> list[bool]:
    """Whether each greedy answer is the expected one: every expected token is the most likely one at its place."""
    found = []
    for start in range(0, len(examples), 32):
        batch = encoder.batch(examples[start : start + 32])
        logits, targets, _ = answer_logits(model, batch)
        right = torch.ones_like(batch.targets, dtype=torch.bool)
        right[batch.targets != IGNORED] = logits.argmax(-1) == targets
        found += right.all(1).tolist()
    return found


def report(model: Qwen3, encoder: Encoder, development: Bank) -> str:
    """The shares of exact answers on development data: reviews with a correction, reviews without one, and summaries."""
    author = Author(random.Random(11), development, simulated=0.0)
    reviews = [author.review() for _ in range(240)]
    right = exact(model, encoder, reviews)
    with_edit = [ok for ok, example in zip(right, reviews, strict=True) if example.marked]
    without = [ok for ok, example in zip(right, reviews, strict=True) if not example.marked]
    summaries = exact(model, encoder, [author.summary() for _ in range(64)])
    shares = {"corrected": with_edit, "left alone": without, "summaries": summaries}
    return "  ".join(f"{name} {100 * sum(ok) / max(1, len(ok)):.0f}%" for name, ok in shares.items())


def save(model: Qwen3, tokenizer: Tokenizer, settings: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    tokeniser.save(tokenizer, out, context=CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(7)
    pairs = read_bank(options.work / "bank")
    bank, development = Bank.of(pairs[:-DEVELOPMENT_PAIRS]), Bank.of(pairs[-DEVELOPMENT_PAIRS:])
    tokenizer = tokeniser.make(PROMPTS, FRAMES, tokeniser.characters())
    encoder = Encoder(tokenizer)
    settings = config(tokenizer.get_vocab_size(), encoder.end)
    model = Qwen3(settings)
    prepare(model, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters} parameters, {settings['vocab_size']} tokens, {len(bank.pairs)} pairs, {len(bank.terms)} terms",
        flush=True,
    )
    steps.train(
        model,
        Trainer(model, encoder, bank, options.steps).loss,
        steps=options.steps,
        checkpoint=options.work / "checkpoint.pt",
        peak_rate=PEAK_RATE,
        warm_up=40,
        constant_until=0.3,
        max_norm=1.0,
        every=250,
        on_report=lambda _: report(model, encoder, development),
    )
    save(model, tokenizer, settings, options.out)


if __name__ == "__main__":
    main()
