"""Measure how many rendered lines `duet-tiny-vl` reads exactly, through `/v1/chat/completions` of a running stack.

    .venv/bin/python -m training.vision.evaluate [--json FILE]

The lines are words that it was never trained on, and digits. Half of the images have fonts of the training, half have
fonts that it never saw. Sizes, colours, blur and noise are drawn as in training. Needs a word list and the fonts that
`rendering.py` names, but no torch.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

import httpx

from duet.testing.stack import running
from training.vision import rendering, texts
from training.vision.rendering import Line

MODEL: Final = "duet-tiny-vl"
PROMPT: Final = "Read the text in the image."
FONTS: Final = {"fonts of the training": rendering.TRAINING_FONTS, "fonts held out": rendering.HELD_OUT_FONTS}
KINDS: Final[dict[texts.Kind, float]] = {"word": 0.5, "words": 0.2, "number": 0.3}
AT_ONCE: Final = 4


@dataclass(frozen=True)
class Reading:
    fonts: str
    kind: texts.Kind
    text: str
    read: str

    @property
    def exact(self) -> bool:
        return self.read == self.text

    @property
    def words(self) -> list[bool]:
        """For each word of the line, whether it was read exactly. Empty for a line of numbers."""
        if self.kind == "number":
            return []
        said = self.text.split()
        right = SequenceMatcher(None, said, self.read.split(), autojunk=False).get_matching_blocks()
        found = {block.a + i for block in right for i in range(block.size)}
        return [i in found for i in range(len(said))]


def lines(count: int, seed: int) -> list[tuple[str, texts.Kind, Line]]:
    """`count` lines, in which each group of fonts and kind of text has its share."""
    rendering.require_fonts()
    rng = random.Random(f"evaluation {seed}")

    def line(kind: texts.Kind, fonts: tuple[str, ...]) -> Line:
        def propose(longest: int) -> str:
            return texts.draw(rng, kind=kind, unseen=True, longest=max(12, min(longest, texts.LONGEST)))

        return rendering.render(rng, *rendering.shape(rng), propose, fonts)

    return [
        (name, kind, line(kind, fonts))
        for name, fonts in FONTS.items()
        for kind, share in KINDS.items()
        for _ in range(round(count / len(FONTS) * share))
    ]


def data_url(line: Line) -> str:
    buffer = io.BytesIO()
    line.image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read(client: httpx.Client, shown: Sequence[Line], prompt: str = PROMPT) -> str:
    """The model's answer about some images."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(line)}} for line in shown]
    content.append({"type": "text", "text": prompt})
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0}
    response = client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def evaluate(client: httpx.Client, count: int = 400, seed: int = 1) -> list[Reading]:
    """Render and read `count` lines through the engine behind `client`."""
    drawn = lines(count, seed)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda item: read(client, [item[2]]), drawn)
        return [Reading(fonts, kind, line.text, text) for (fonts, kind, line), text in zip(drawn, found, strict=True)]


def figures(readings: list[Reading]) -> dict[str, dict[str, float]]:
    """Shares of lines that were read exactly, by fonts and kind of text. `all` covers all kinds."""
    found: dict[str, dict[str, float]] = {}
    for fonts in FONTS:
        here = [reading for reading in readings if reading.fonts == fonts]
        groups = {"all": here, **{kind: [reading for reading in here if reading.kind == kind] for kind in KINDS}}
        found[fonts] = {
            name: sum(reading.exact for reading in group) / len(group) for name, group in groups.items() if group
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write figures and mistakes to this file")
    options = parser.parse_args()
    with running() as stack, stack.client(stack.engine_url) as client:
        readings = evaluate(client, options.count, options.seed)
    found = figures(readings)
    for fonts, shares in found.items():
        print(f"{fonts}: " + ", ".join(f"{kind} {100 * share:.1f}%" for kind, share in shares.items()))
    mistakes = [reading for reading in readings if not reading.exact]
    for reading in mistakes[:20]:
        print(f"  {reading.text!r} read as {reading.read!r} ({reading.fonts})")
    if options.json:
        missed = [{"fonts": reading.fonts, "text": reading.text, "read": reading.read} for reading in mistakes]
        report = {"lines": len(readings), "seed": options.seed, "exact": found, "mistakes": missed}
        options.json.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
