"""Train the recogniser on the shards that `data.py` made.

    python -m training.recogniser.train --out build/train/recogniser/model

The loss has three parts: CTC over tokens, cross-entropy on the four marks, and CTC over a few sounds from the middle
block. With the last part the lower half learns to hear while the upper half learns to spell (intermediate CTC,
arXiv:2102.03216).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from training import held_out, lexicon, steps, voices
from training.recogniser import data
from training.recogniser.model import LANGUAGES, QUERIES, SHIFT, WINDOW, WITH_ITN, WITHOUT_ITN, Recogniser
from training.recogniser.tokens import BLANK, Tokens
from training.sentences import Sentence

BATCH_FRAMES: Final = 1_000
"""Low-rate frames in one batch, with padding: one minute of audio."""
SHORT_FRAMES, SHORT_BATCHES = 400, 800
"""The first epoch begins with `SHORT_BATCHES` batches of up to four seconds (SortaGrad, arXiv:1512.02595)."""
MAX_FRAMES: Final = 1_100
STEPS: Final = 45_000
SHORTER_UNTIL: Final = 0.6
"""The share of all steps in which words are sometimes split into shorter pieces. Afterwards every word has one form.
With several forms, CTC's best path, which is read frame by frame, would mix them ("brringing")."""
PEAK_RATE: Final = 1.2e-3
SOUND_WEIGHT, MARK_WEIGHT = 0.7, 0.1


@dataclass(frozen=True)
class Row:
    """One utterance. `start` and `frames` locate its features in the corpus. The targets are made from `text`."""

    start: int
    frames: int
    text: str
    bare: str
    sounds: list[int]
    language: str
    event: str


class Corpus:
    """The first shards of a folder in memory. Features stay bytes."""

    def __init__(self, folder: Path, shards: int, tokens: Tokens, sounds: Sounds) -> None:
        self.tokens = tokens
        self.rows: list[Row] = []
        parts: list[data.Features] = []
        start = 0
        for path in (data.shard_path(folder, number) for number in range(shards)):
            for utterance in data.read_shard(path):
                if not held_out.allowed(utterance.text):
                    raise ValueError(f"{path} has a sentence of the evaluation sets: make the shard again")
                frames = len(utterance.features)
                bare = Sentence(utterance.text, "zh").bare
                heard = sounds.encode(bare)
                if frames <= MAX_FRAMES and _fits(tokens.encode(utterance.text), heard, frames):
                    self.rows.append(
                        Row(start, frames, utterance.text, bare, heard, utterance.language, utterance.event)
                    )
                    parts.append(utterance.features)
                    start += frames
        self.features = np.concatenate(parts)

    def batches(self, epoch: int) -> list[list[int]]:
        """Row indices in shuffled batches of similar length. The same `epoch` gives the same batches."""
        rng = random.Random(epoch)
        order = sorted(range(len(self.rows)), key=lambda i: self.rows[i].frames + rng.random() * 40)
        found: list[list[int]] = [[]]
        longest = 0
        for i in order:
            longest = max(longest, self.rows[i].frames // SHIFT)
            if found[-1] and longest * (len(found[-1]) + 1) > BATCH_FRAMES:
                found.append([])
                longest = self.rows[i].frames // SHIFT
            found[-1].append(i)
        rng.shuffle(found)
        if epoch == 0:
            short = [batch for batch in found if max(self.rows[i].frames for i in batch) <= SHORT_FRAMES][
                :SHORT_BATCHES
            ]
            first = set(map(id, short))
            found = short + [batch for batch in found if id(batch) not in first]
        return found


def _fits(tokens: list[int], sounds: list[int], frames: int) -> bool:
    """Whether the targets fit into the frames. CTC needs a frame for every token and one between equal tokens; the
    factor 1.25 leaves room for shorter pieces."""
    doubled = sum(a == b for a, b in pairwise(sounds))
    return max(len(tokens) * 1.25, len(sounds) + doubled) + 3 < frames // SHIFT


class Sounds:
    """The auxiliary targets, about ninety: the initial and final of each Han character's syllable, and English
    consonants.

    The network learns so few targets in minutes. This ends the plateau on which CTC over thousands of tokens predicts
    only blanks.
    """

    def __init__(self) -> None:
        syllables = {voices.pinyin(character).rstrip("12345") for character in lexicon.characters()}
        han = sorted({part for syllable in syllables for part in _parts(syllable)})
        self._han = {part: i + 1 for i, part in enumerate(han)}
        self._latin = {letter: len(han) + 1 + i for i, letter in enumerate(_CONSONANTS)}
        self.size = 1 + len(self._han) + len(self._latin)

    def encode(self, bare: str) -> list[int]:
        """Ids of the sounds of a text. Han characters have their reading in this sentence."""
        found: list[int] = []
        for han, run in groupby(bare, key=lambda c: "\u4e00" <= c <= "\u9fff"):
            text = "".join(run)
            if han:
                for reading in voices.pinyin(text).split(" "):
                    found += [self._han[part] for part in _parts(reading.rstrip("12345")) if part in self._han]
            else:
                found += [self._latin[letter] for letter in text if letter in self._latin]
        return found


_CONSONANTS: Final = "bcdfgjklmnpqrstvwxyz"


def _parts(syllable: str) -> tuple[str, ...]:
    """The initial and the final of a syllable without its tone."""
    initial = re.match("zh|ch|sh|[bpmfdtnlgkhjqxrzcsyw]?", syllable)
    assert initial is not None
    return tuple(part for part in (initial.group() + "-", "-" + syllable[initial.end() :]) if part != "-")


@dataclass(frozen=True)
class Batch:
    x: Tensor
    lengths: Tensor
    language: Tensor
    text_norm: Tensor
    marks: Tensor
    targets: list[list[int]]
    sounds: list[list[int]]


class Trainer:
    def __init__(
        self,
        corpus: Corpus,
        mean: NDArray[np.float32],
        deviation: NDArray[np.float32],
        model: Recogniser,
        *,
        total_steps: int = 0,
    ) -> None:
        self.corpus, self.mean, self.deviation, self.model = corpus, mean, deviation, model
        self._total = total_steps
        self._per_epoch = [len(corpus.batches(0))]
        self._epoch, self._batches = -1, list[list[int]]()

    def loss(self, step: int) -> Tensor:
        epoch, position = self._place(step)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.corpus.batches(epoch)
        rng = random.Random(steps.seed_of_step(step))
        shorter = step < SHORTER_UNTIL * self._total
        batch = self.collate(self._batches[position % len(self._batches)], rng, shorter_pieces=shorter)
        with torch.autocast("cpu", torch.bfloat16):
            hidden, sounds = self.model.hidden(batch.x, batch.lengths, batch.language, batch.text_norm)
            logits = self.model.output(self.model.output_norm(hidden))
        marks = F.cross_entropy(logits[:, :QUERIES].float().flatten(0, 1), batch.marks.flatten())
        return (
            _ctc(logits, batch.lengths, batch.targets)
            + SOUND_WEIGHT * _ctc(sounds, batch.lengths, batch.sounds)
            + MARK_WEIGHT * marks
        )

    def _place(self, step: int) -> tuple[int, int]:
        return divmod(step, self._per_epoch[0])

    def collate(self, chosen: list[int], rng: random.Random | None, *, shorter_pieces: bool = False) -> Batch:
        """The batch of the chosen rows. `rng` draws the text form, decides whether the language is known, and masks
        features (SpecAugment, arXiv:1904.08779)."""
        corpus, tokens = self.corpus, self.corpus.tokens
        features, language, norm, marks, targets, sounds = [], [], [], [], [], []
        for i in chosen:
            row = corpus.rows[i]
            shift = rng.randint(0, SHIFT - 1) if rng else 0
            mel = (
                corpus.features[row.start + shift : row.start + row.frames].astype(np.float32) * data.QUANTUM
                + data.FLOOR
            )
            if rng:
                mel = self._masked(mel, rng)
            features.append(torch.from_numpy((low_rate(mel) - self.mean) / self.deviation))
            itn = rng.random() < 0.5 if rng else False
            norm.append(WITH_ITN if itn else WITHOUT_ITN)
            known = rng is not None and row.language != "nospeech" and rng.random() < 0.4
            language.append(LANGUAGES[row.language] if known else LANGUAGES["auto"])
            feeling = "<|EMO_UNKNOWN|>" if row.language == "nospeech" else "<|NEUTRAL|>"
            form = "<|withitn|>" if itn else "<|woitn|>"
            marks.append([tokens.id[mark] for mark in (f"<|{row.language}|>", feeling, f"<|{row.event}|>", form)])
            targets.append(tokens.encode(row.text if itn else row.bare, rng if shorter_pieces else None))
            sounds.append(row.sounds)
        return Batch(
            nn.utils.rnn.pad_sequence(features, batch_first=True),
            torch.tensor([len(f) for f in features]),
            torch.tensor(language),
            torch.tensor(norm),
            torch.tensor(marks),
            targets,
            sounds,
        )

    def _masked(self, mel: NDArray[np.float32], rng: random.Random) -> NDArray[np.float32]:
        mel = mel + np.float32(rng.uniform(-1.5, 1.5))
        floor = self.mean[: data.MELS]
        for _ in range(2):
            width = rng.randint(0, 10)
            first = rng.randint(0, data.MELS - width)
            mel[:, first : first + width] = floor[first : first + width]
            long = rng.randint(0, 10)
            start = rng.randint(0, max(0, len(mel) - long - 1))
            mel[start : start + long] = floor
        return mel


class _ChosenLogProbabilities(torch.autograd.Function):
    """Log-softmax at a few classes of a large vocabulary. Only for `ctc_loss`.

    For each class that it gets, PyTorch's CTC returns the gradient after the softmax: share * (probability -
    posterior). For the other classes the posterior is 0, so their gradient is share * probability. `backward` computes
    it once, in the type of the logits. `share` (batch, time) is the weight of each frame in the loss.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, chosen: Tensor, share: Tensor) -> Tensor:
        total = torch.logsumexp(logits.float(), -1, keepdim=True)
        context.save_for_backward(logits, total, chosen, share)
        return logits.gather(2, chosen).float() - total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, total, chosen, share = context.saved_tensors
        found = torch.sub(logits.float(), total).exp_().mul_(share.unsqueeze(-1)).to(logits.dtype)
        return found.scatter_(2, chosen, gradients[0].to(logits.dtype)), None, None


def _ctc(logits: Tensor, lengths: Tensor, targets: list[list[int]]) -> Tensor:
    """CTC over the blank and each target's own tokens. This equals CTC over all tokens at a fraction of the cost.

    Returns the loss per token, averaged over the batch. Every target must fit into its frames."""
    own = [[BLANK, *sorted(set(target))] for target in targets]
    widest = max(map(len, own))
    chosen = torch.tensor([ids + _others(ids, widest - len(ids)) for ids in own])
    scores = logits[:, QUERIES:]
    sizes = torch.tensor([len(target) for target in targets])
    weights = 1 / (len(targets) * sizes.clamp(min=1).float())
    share = (torch.arange(scores.shape[1]) < lengths.unsqueeze(1)) * weights.unsqueeze(1)
    kept = _ChosenLogProbabilities.apply(scores, chosen.unsqueeze(1).expand(-1, scores.shape[1], -1), share)
    place = [{token: i for i, token in enumerate(ids)} for ids in own]
    flat = torch.tensor([place[k][token] for k, target in enumerate(targets) for token in target])
    losses = F.ctc_loss(kept.transpose(0, 1), flat, lengths, sizes, blank=0, reduction="none")
    return (losses * weights).sum()


def _others(ids: list[int], count: int) -> list[int]:
    """`count` ids that are not in `ids`, because no class may be chosen twice."""
    used = set(ids)
    found: list[int] = []
    candidate = 1
    while len(found) < count:
        if candidate not in used:
            found.append(candidate)
        candidate += 1
    return found


def low_rate(mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Joins frames as sherpa-onnx does: (frames, 80) become (fewer frames, 560), windows of 7 every 6, without padding."""
    mel = np.ascontiguousarray(mel)
    count = max(0, (len(mel) - WINDOW) // SHIFT + 1)
    stride = mel.itemsize * mel.shape[1]
    return np.lib.stride_tricks.as_strided(mel, (count, WINDOW * mel.shape[1]), (SHIFT * stride, mel.itemsize)).copy()


def statistics(corpus: Corpus) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean and standard deviation of each of the 560 inputs."""
    mel = corpus.features[::37].astype(np.float32) * data.QUANTUM + data.FLOOR
    return np.tile(mel.mean(0), WINDOW).astype(np.float32), np.tile(mel.std(0), WINDOW).astype(np.float32)


def error_rates(trainer: Trainer, development: Corpus, count: int = 200) -> str:
    """CER without punctuation and spaces on the first `count` development utterances, for zh and en."""
    wrong, total = {"zh": 0, "en": 0}, {"zh": 1, "en": 1}
    judge = Trainer(development, trainer.mean, trainer.deviation, trainer.model)
    spoken = [i for i, row in enumerate(development.rows[:count]) if row.text]
    for start in range(0, len(spoken), 20):
        chosen = spoken[start : start + 20]
        batch = judge.collate(chosen, None)
        with torch.autocast("cpu", torch.bfloat16):
            best = trainer.model(batch.x, batch.lengths, batch.language, batch.text_norm).argmax(-1)
        for k, i in enumerate(chosen):
            heard = [t for t, _ in groupby(best[k, QUERIES : QUERIES + int(batch.lengths[k])].tolist()) if t != BLANK]
            row = development.rows[i]
            said = row.bare.replace(" ", "")
            wrong[row.language] += distance(development.tokens.decode(heard).replace(" ", ""), said)
            total[row.language] += len(said)
    return "  ".join(f"{language} CER {100 * wrong[language] / total[language]:.1f}%" for language in wrong)


def distance(a: str, b: str) -> int:
    """Edit distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=data.WORK)
    parser.add_argument("--out", type=Path, default=data.WORK / "model")
    parser.add_argument(
        "--shards", type=int, default=data.TRAIN_SHARDS, help="shards to train on; the review model needs the others"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(7)
    options.out.mkdir(parents=True, exist_ok=True)
    tokens = Tokens.make()
    tokens.write(options.out / "tokens.txt")
    sounds = Sounds()
    development = Corpus(options.work / "development", 1, tokens, sounds)
    corpus = Corpus(options.work / "train", options.shards, tokens, sounds)
    mean, deviation = statistics(corpus)
    np.savez(options.out / "statistics.npz", mean=mean, deviation=deviation)
    model = Recogniser(len(tokens.symbols), sounds.size)
    trainer = Trainer(corpus, mean, deviation, model, total_steps=options.steps)
    facts: dict[str, Any] = {
        "utterances": len(corpus.rows),
        "hours": round(len(corpus.features) / data.FRAMES_A_SECOND / 3600, 1),
        "tokens": len(tokens.symbols),
        "sounds": sounds.size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batches an epoch": len(corpus.batches(0)),
    }
    print(json.dumps(facts), flush=True)
    steps.train(
        model,
        trainer.loss,
        steps=options.steps,
        checkpoint=options.out / "checkpoint.pt",
        peak_rate=PEAK_RATE,
        warm_up=300,
        constant_until=0.35,
        every=500,
        on_report=lambda step: error_rates(trainer, development) if step % 1000 == 0 else "",
    )
    torch.save(model.state_dict(), options.out / "model.pt")


if __name__ == "__main__":
    main()
