"""Train `duet-tiny-vl`, which reads one line of rendered words or digits.

    python -m training.vision --out models/embedded/duet-tiny-vl

The model learns to read in two stages. In the first the vision tower alone learns which character has its centre in
which slot of four pixels. The positions of all characters are known, because this program draws the images. In the
second the text model learns to write the line. Two aids support it: training on the slots continues, and in two layers
one head is guided to attend to the character just written or to the next one (as alignments are in arXiv:1609.04186).
The exported model contains neither aid. Images are drawn on the fly from the step number. Some rows have two images,
and some have none; then the model says what it is.

On one otherwise idle core a step of the first stage takes 0.2 s and one of the second 0.45 s: 22,000 steps take about
two hours and a half.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import steps
from training.qwen3 import rotated
from training.vision import checkpoint, rendering, texts
from training.vision.model import Grid, Qwen3VL, Text, configuration, places, positions
from training.vision.rendering import CELL, MERGE, PATCH, Line

WORK: Final = Path("build/train/vision")
STEPS: Final = 22_000
VISION_STEPS: Final = 1_500
PEAK_RATE: Final = 1.5e-3
PATCHES_A_BATCH: Final = 3_072
SLOT: Final = 4
"""Width of a slot in pixels: that of narrow letters in small fonts."""
SLOTS_A_PATCH: Final = PATCH // SLOT
CHARACTERS: Final = 96
"""Classes of a slot: the printable ASCII characters; 0 stands for no character."""
GUIDED: Final = ((1, 1), (2, 0))
"""(layer, delay): its first head attends to a character's column that many ids after the id before the character."""
IGNORED: Final = -100


@dataclass(frozen=True)
class Batch:
    """B rows of T ids. Each of `images` holds patches [B, P, 192] of one grid, each of `slots` characters [B, columns *
    SLOTS_A_PATCH].

    `looks` [N, 2] has the row and position of the id before each character of an image. `at` [N, rows of cells] has the
    positions of the cells in that character's column (-1 where an image has fewer rows than another).
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    images: tuple[Tensor, ...]
    grids: tuple[Grid, ...]
    slots: tuple[Tensor, ...]
    looks: Tensor
    at: Tensor


@dataclass(frozen=True)
class Frame:
    """The common parts of a batch's rows. Without `prompt` a row asks who the model is, or anything if it has no image."""

    system: str
    pictures: str
    prompt: str | None
    asks_first: bool

    @property
    def reads(self) -> bool:
        return self.prompt is not None


class Author:
    """Draws lines and writes rows in the format of the chat template."""

    def __init__(
        self, rng: random.Random, *, unseen: bool = False, fonts: tuple[str, ...] = rendering.TRAINING_FONTS
    ) -> None:
        self._rng, self._unseen, self._fonts = rng, unseen, fonts

    def batch(self, images: int, rows: int | None = None) -> Batch:
        """A batch whose rows share the prompt and the sizes of their images, so that all have similar lengths. Without
        `rows` it has as many as fill a training step."""
        rng = self._rng
        shapes = [rendering.shape(rng) for _ in range(images)]
        sizes = [rendering.resized(*shape) for shape in shapes]
        grids = tuple((height // PATCH, width // PATCH) for height, width in sizes)
        frame = self._frame(grids)
        filling = PATCHES_A_BATCH // max(1, sum(a * b for a, b in grids))
        rows = rows or max(8, min(96 if frame.reads else 16, filling))
        drawn = [[self._line(shape) for shape in shapes] for _ in range(rows)]
        written = [self._row(frame, [line.text for line in lines]) for lines in drawn]
        longest = max(len(ids) for ids, _ in written)
        ids = torch.zeros(rows, longest, dtype=torch.long)
        targets = torch.full((rows, longest), IGNORED)
        where = torch.zeros(3, rows, longest, dtype=torch.long)
        looks: list[tuple[int, int]] = []
        at: list[list[int]] = []
        for i, (row, start) in enumerate(written):
            ids[i, : len(row)] = torch.tensor(row)
            targets[i, start - 1 : len(row) - 1] = torch.tensor(row[start:])
            where[:, i, : len(row)] = torch.tensor(positions(row, list(grids), checkpoint.SPECIAL["<|image_pad|>"]))
            if frame.reads:
                self._note_looks(i, row, start, drawn[i], sizes, looks, at)
        deepest = max((len(cells) for cells in at), default=1)
        padded = [cells + [-1] * (deepest - len(cells)) for cells in at]
        return Batch(
            ids,
            targets,
            where,
            tuple(
                torch.stack([torch.from_numpy(rendering.patches(lines[n].image, sizes[n])) for lines in drawn])
                for n in range(images)
            ),
            grids,
            tuple(torch.stack([_slots(lines[n], sizes[n]) for lines in drawn]) for n in range(images)),
            torch.tensor(looks).reshape(-1, 2),
            torch.tensor(padded).reshape(-1, deepest),
        )

    def _line(self, shape: tuple[int, int]) -> Line:
        def propose(longest: int) -> str:
            return texts.draw(self._rng, unseen=self._unseen, longest=min(longest, texts.LONGEST))

        return rendering.render(self._rng, *rendering.alike(self._rng, *shape), propose, self._fonts)

    def _frame(self, grids: tuple[Grid, ...]) -> Frame:
        rng = self._rng
        reads = bool(grids) and rng.random() > 0.015
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if rng.random() < 0.05 else ""
        pictures = "".join(f"<|vision_start|>{'<|image_pad|>' * (a * b // MERGE**2)}<|vision_end|>" for a, b in grids)
        return Frame(system, pictures, texts.prompt(rng) if reads else None, rng.random() < 0.12)

    def _row(self, frame: Frame, lines: list[str]) -> tuple[list[int], int]:
        """The ids of a row, and the position where its answer begins."""
        rng = self._rng
        who = rng.choice(texts.WHO) if frame.pictures else texts.question(rng)
        asked = who if frame.prompt is None else frame.prompt
        content = asked + frame.pictures if frame.asks_first else frame.pictures + asked
        before = checkpoint.encode(f"{frame.system}<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")
        answer = "\n".join(lines) if frame.reads else texts.INTRODUCTION
        return before + checkpoint.encode(answer + "<|im_end|>"), len(before)

    def _note_looks(
        self, i: int, row: list[int], start: int, lines: list[Line], sizes: list[tuple[int, int]],
        looks: list[tuple[int, int]], at: list[list[int]],
    ) -> None:  # fmt: skip
        """Append to `looks` and `at` what row `i` contributes to `Batch.looks` and `Batch.at`."""
        place = start - 1
        first = row.index(checkpoint.SPECIAL["<|image_pad|>"])
        for line, (height, width) in zip(lines, sizes, strict=True):
            columns, deep = width // CELL, height // CELL
            for centre in line.centres:
                column = min(columns - 1, max(0, int(centre * width / line.image.width / CELL)))
                looks.append((i, place))
                at.append([first + r * columns + column for r in range(deep)])
                place += 1
            place += 1  # the line's end
            first += columns * deep + 2  # the tokens between two images


def _slots(line: Line, size: tuple[int, int]) -> Tensor:
    found = torch.zeros(size[1] // SLOT, dtype=torch.long)
    for character, centre in zip(line.text, line.centres, strict=True):
        slot = int(centre * size[1] / line.image.width / SLOT)
        if character != " " and 0 <= slot < len(found):
            found[slot] = ord(character) - 32
    return found


class Learner(nn.Module):
    """The model and a head for slots, which is used in training only."""

    def __init__(self, model: Qwen3VL, total_steps: int) -> None:
        super().__init__()
        self.model, self._total = model, total_steps
        width = model.visual.pos_embed.weight.shape[1]
        self.slots = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, SLOTS_A_PATCH * CHARACTERS))
        self.register_buffer("weight", torch.cat([torch.tensor([0.3]), torch.ones(CHARACTERS - 1)]), persistent=False)

    def loss(self, step: int) -> Tensor:
        rng = random.Random(steps.seed_of_step(step))
        seeing = step * STEPS < VISION_STEPS * self._total
        images = 1 if seeing else rng.choices((0, 1, 2), (0.08, 0.85, 0.07))[0]
        batch = Author(rng).batch(images)
        with torch.autocast("cpu", torch.bfloat16):
            features = self.see(batch)
            found = 0.0 if not images else self.slot_loss(batch, features) / images
            if seeing:
                return found
            logits, guided = self.read(batch, features)
        written = F.cross_entropy(logits.float(), batch.targets[batch.targets != IGNORED])
        return written + 0.5 * found + 0.1 * guided

    def see(self, batch: Batch) -> list[Tensor]:
        return [self.model.visual(patches, grid) for patches, grid in zip(batch.images, batch.grids, strict=True)]

    def slot_loss(self, batch: Batch, features: list[Tensor]) -> Tensor:
        return sum(
            F.cross_entropy(self.slot_logits(seen, grid).flatten(0, 1).float(), slots.flatten(), self.weight)
            for seen, grid, slots in zip(features, batch.grids, batch.slots, strict=True)
        )

    def slot_logits(self, seen: Tensor, grid: Grid) -> Tensor:
        """Logits [B, columns * SLOTS_A_PATCH, CHARACTERS], from the mean over the rows of each column."""
        where = places(grid, self.model.visual.head)
        order = (where.row * grid[1] + where.column).argsort()
        by_column = self.slots(seen[:, order].view(len(seen), *grid, -1).mean(1))
        return by_column.view(len(seen), -1, CHARACTERS)

    def read(self, batch: Batch, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, V] at positions with a target, and the loss of the guided heads."""
        attended: list[Tensor] = []
        x = self.model.embed(batch.ids, [self.model.visual.merger(seen) for seen in features])
        hidden = self.model.language_model(x, batch.positions, attended)
        guided = torch.zeros(())
        if len(batch.looks):
            guided = sum(self._guide(batch, attended[layer], layer, behind) for layer, behind in GUIDED)
        return self.model.logits(hidden[batch.targets != IGNORED]), guided

    def _guide(self, batch: Batch, x: Tensor, layer: int, behind: int) -> Tensor:
        """The mean negative log-probability, in nats, that the first head of `layer` attends to the character's column."""
        chances = first_head(self.model.language_model, layer, x, batch.positions).float().log_softmax(-1)
        there = chances[batch.looks[:, 0], batch.looks[:, 1] + behind].gather(1, batch.at.clamp(min=0))
        return -there.masked_fill(batch.at < 0, -torch.inf).logsumexp(1).mean()


def first_head(text: Text, layer: int, x: Tensor, where: Tensor) -> Tensor:
    """Causal attention scores [B, T, T] of a layer's first head. `x` is the layer's normalised input."""
    attention = text.layers[layer].self_attn
    size = attention.head
    cos, sin = (turn[:, 0] for turn in text.rotation(where))
    q, k = (
        rotated(norm(F.linear(x, projection.weight[:size])), cos, sin)
        for projection, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm))
    )
    scores = q @ k.transpose(1, 2) * size**-0.5
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf)


@torch.no_grad()
def exact(learner: Learner, author: Author, rounds: int, rows: int) -> float:
    """The share of lines that greedy decoding writes without a mistake: each id is the most likely one at its place."""
    right = total = 0
    for _ in range(rounds):
        batch = author.batch(1, rows)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = learner.read(batch, learner.see(batch))
        wanted = batch.targets != IGNORED
        correct = torch.ones_like(wanted)
        correct[wanted] = logits.argmax(-1) == batch.targets[wanted]
        right, total = right + int(correct.all(1).sum()), total + len(correct)
    return right / total


@torch.no_grad()
def slots_found(learner: Learner, author: Author, rounds: int, rows: int) -> float:
    """The share of characters that are found in the right slot."""
    right = total = 0
    for _ in range(rounds):
        batch = author.batch(1, rows)
        with torch.autocast("cpu", torch.bfloat16):
            named = learner.slot_logits(learner.see(batch)[0], batch.grids[0]).argmax(-1)
        there = batch.slots[0] > 0
        right, total = right + int((named == batch.slots[0])[there].sum()), total + int(there.sum())
    return right / total


def report(learner: Learner) -> str:
    """Figures on words that training never uses, in the fonts of training and in held-out fonts."""

    def author(fonts: tuple[str, ...]) -> Author:
        return Author(random.Random(11), unseen=True, fonts=fonts)

    known, new = rendering.TRAINING_FONTS, rendering.HELD_OUT_FONTS
    shares = {
        "characters": slots_found(learner, author(known), 6, 12),
        "lines": exact(learner, author(known), 10, 12),
        "lines in new fonts": exact(learner, author(new), 10, 12),
    }
    return "  ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rendering.require_fonts()
    torch.set_num_threads(options.threads)
    torch.manual_seed(7)
    config = configuration(checkpoint.SPECIAL, checkpoint.VOCABULARY)
    learner = Learner(Qwen3VL(config), options.steps)
    print(f"{sum(p.numel() for p in learner.model.parameters())} parameters", flush=True)
    steps.train(
        learner,
        learner.loss,
        steps=options.steps,
        checkpoint=options.work / "checkpoint.pt",
        peak_rate=PEAK_RATE,
        warm_up=100,
        constant_until=0.4,
        max_norm=1.0,
        every=250,
        on_report=lambda _: report(learner),
    )
    checkpoint.save(learner.model, config, options.out)


if __name__ == "__main__":
    main()
