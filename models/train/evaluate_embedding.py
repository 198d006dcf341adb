"""How well `duet-tiny-embed` finds what means the same, on 100 meanings that no training text was made from.

    python -m models.train.evaluate_embedding [--model models/embedded/duet-tiny-embed]

`paraphrases.txt` has a meaning a line, twice in Chinese and twice in English, written by hand: free sentences of daily life
and work, no templates. The words of most are in the training dictionaries, the sentences and their wording in nothing that
was trained on. Each sentence is a query, and all hundred of the other wording are the candidates. Prints figures as JSON.
Runs the code that the engine's worker runs; needs no torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

import models
from engine.types import EmbeddingRequest
from engine.worker.runtime.families.embedding import start_embedding
from engine.worker.runtime.loader import Loaded, load

PARAPHRASES: Final = Path(__file__).with_name("paraphrases.txt")
COLUMNS: Final = ("zh", "zh", "en", "en")
Vectors = np.ndarray[Any, np.dtype[np.float32]]


def read(path: Path = PARAPHRASES) -> list[tuple[str, ...]]:
    """Four sentences a meaning: two Chinese, two English."""
    rows = [tuple(line.split("|")) for line in path.read_text(encoding="utf-8").splitlines()]
    if wrong := [number for number, row in enumerate(rows, 1) if len(row) != len(COLUMNS)]:
        raise ValueError(f"{path}: line {wrong[0]} has not {len(COLUMNS)} sentences")
    return rows


def embed(loaded: Loaded, texts: list[str]) -> Vectors:
    """Unit vectors [N, D]."""
    job = start_embedding(loaded, EmbeddingRequest(id="evaluation", model="duet-tiny-embed", inputs=tuple(texts)))
    while (result := job.step()) is None:
        pass
    return np.frombuffer(result.vectors, "<f4").reshape(len(texts), result.dimensions)


def ranks(queries: Vectors, candidates: Vectors) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For query i, how many candidates are nearer than candidate i."""
    scores = queries @ candidates.T
    found: np.ndarray[Any, np.dtype[np.int64]] = (scores > np.diag(scores)[:, None]).sum(1)
    return found


def evaluate(loaded: Loaded, rows: list[tuple[str, ...]]) -> dict[str, Any]:
    """Top-1 and top-5 by direction, and over the same language, over two languages, and over all."""
    vectors = [embed(loaded, [row[column] for row in rows]) for column in range(len(COLUMNS))]
    by_direction: dict[str, list[int]] = {}
    for asked, queries in enumerate(vectors):
        for answered, candidates in enumerate(vectors):
            if asked != answered:
                direction = f"{COLUMNS[asked]} to {COLUMNS[answered]}"
                by_direction.setdefault(direction, []).extend(ranks(queries, candidates).tolist())
    groups = {
        "same language": by_direction["zh to zh"] + by_direction["en to en"],
        "across languages": by_direction["zh to en"] + by_direction["en to zh"],
        "all": [rank for found in by_direction.values() for rank in found],
    }
    return {"candidates": len(rows), **{name: _share(found) for name, found in {**by_direction, **groups}.items()}}


def _share(found: list[int]) -> dict[str, float]:
    count = len(found)
    return {
        "queries": count,
        "top_1": sum(rank == 0 for rank in found) / count,
        "top_5": sum(rank < 5 for rank in found) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=models.EMBEDDED / "duet-tiny-embed")
    options = parser.parse_args()
    print(json.dumps(evaluate(load(options.model, "embedding"), read()), indent=1))


if __name__ == "__main__":
    main()
