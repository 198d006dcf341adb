"""Measure how well `duet-tiny-embed` finds paraphrases, on 100 meanings that no training text was made from.

    python -m training.evaluate.embedding [--model models/embedded/duet-tiny-embed]

`training/paraphrases.txt` has one meaning per line, worded twice in Chinese and twice in English. The sentences were
written by hand about daily life and work, without templates. Most of their words are in the training dictionaries, but
no training data contains the sentences or their wording. Each sentence is a query, and the hundred sentences of another
wording are the candidates. Prints figures as JSON. It runs the code of the engine's worker and needs no torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

import models
from engine.types import EmbeddingRequest
from engine.worker.families.embedding import start_embedding
from engine.worker.model import Loaded
from engine.worker.runtime.loader import load

PARAPHRASES: Final = Path(__file__).parents[1] / "paraphrases.txt"
COLUMNS: Final = ("zh", "zh", "en", "en")
SAMPLES, SEED = 2_000, 7
"""Draws of the bootstrap, and their seed."""
Vectors = np.ndarray[Any, np.dtype[np.float32]]
Ranks = np.ndarray[Any, np.dtype[np.int64]]


def read(path: Path = PARAPHRASES) -> list[tuple[str, ...]]:
    """Four sentences for each meaning: two Chinese, two English."""
    rows = [tuple(line.split("|")) for line in path.read_text(encoding="utf-8").splitlines()]
    if wrong := [number for number, row in enumerate(rows, 1) if len(row) != len(COLUMNS)]:
        raise ValueError(f"{path}: line {wrong[0]} does not have {len(COLUMNS)} sentences")
    return rows


def embed(loaded: Loaded, texts: list[str]) -> Vectors:
    """Unit vectors [N, D]."""
    job = start_embedding(loaded, EmbeddingRequest(id="evaluation", model="duet-tiny-embed", inputs=tuple(texts)))
    while (result := job.step()) is None:
        pass
    return np.frombuffer(result.vectors, "<f4").reshape(len(texts), result.dimensions)


def ranks(queries: Vectors, candidates: Vectors) -> Ranks:
    """For each query i, the number of candidates that are nearer than candidate i."""
    scores = queries @ candidates.T
    found: Ranks = (scores > np.diag(scores)[:, None]).sum(1)
    return found


def evaluate(loaded: Loaded, rows: list[tuple[str, ...]]) -> dict[str, Any]:
    """Top-1 (with its `interval`) and top-5 for each direction, within one language, across languages, and over all."""
    vectors = [embed(loaded, [row[column] for row in rows]) for column in range(len(COLUMNS))]
    by_direction: dict[str, list[Ranks]] = {}
    for source, queries in enumerate(vectors):
        for target, candidates in enumerate(vectors):
            if source != target:
                direction = f"{COLUMNS[source]} to {COLUMNS[target]}"
                by_direction.setdefault(direction, []).append(ranks(queries, candidates))
    groups = {
        "same language": by_direction["zh to zh"] + by_direction["en to en"],
        "across languages": by_direction["zh to en"] + by_direction["en to zh"],
        "all": [found for several in by_direction.values() for found in several],
    }
    return {"candidates": len(rows), **{name: _shares(found) for name, found in {**by_direction, **groups}.items()}}


def _shares(found: list[Ranks]) -> dict[str, Any]:
    """`interval` is a 95% percentile bootstrap over meanings: queries of one meaning succeed and fail together."""
    table = np.stack(found)  # [directions, meanings]
    hits = (table == 0).mean(0)
    chosen = np.random.default_rng(SEED).integers(0, len(hits), (SAMPLES, len(hits)))
    low, high = np.percentile(hits[chosen].mean(1), [2.5, 97.5])
    return {
        "queries": table.size,
        "top_1": float(hits.mean()),
        "interval": [float(low), float(high)],
        "top_5": float((table < 5).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=models.EMBEDDED / "duet-tiny-embed")
    options = parser.parse_args()
    print(json.dumps(evaluate(load(options.model, "embedding"), read()), indent=1))


if __name__ == "__main__":
    main()
