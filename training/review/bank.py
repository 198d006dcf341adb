"""Collect the recogniser's mistakes: its transcripts of shards that it was not trained on, beside the true text.

    python -m training.review.bank --recogniser build/train/recogniser

A shard takes half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from training.recogniser import data
from training.recogniser.model import LANGUAGES, QUERIES, WITH_ITN, Recogniser
from training.recogniser.tokens import BLANK, Tokens
from training.recogniser.train import Sounds, low_rate
from training.sentences import tidy

BATCH = 24


def transcribe(model: Recogniser, tokens: Tokens, statistics: Path, shard: Path) -> Iterator[tuple[str, str, str]]:
    """(language, said, heard) of every utterance with speech. Both texts have punctuation."""
    found = np.load(statistics)
    mean, deviation = found["mean"], found["deviation"]
    spoken = [utterance for utterance in data.read_shard(shard) if utterance.text]
    spoken.sort(key=lambda utterance: len(utterance.features))
    for start in range(0, len(spoken), BATCH):
        batch = spoken[start : start + BATCH]
        mels = [utterance.features.astype(np.float32) * data.QUANTUM + data.FLOOR for utterance in batch]
        inputs = [torch.from_numpy((low_rate(mel) - mean) / deviation) for mel in mels]
        lengths = torch.tensor([len(x) for x in inputs])
        x = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        auto, itn = torch.full((len(batch),), LANGUAGES["auto"]), torch.full((len(batch),), WITH_ITN)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            best = model(x, lengths, auto, itn).argmax(-1)
        for row, length, utterance in zip(best, lengths, batch, strict=True):
            ids = [i for i, _ in groupby(row[QUERIES : QUERIES + int(length)].tolist()) if i != BLANK]
            yield utterance.language, utterance.text, tidy(tokens.decode(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recogniser", type=Path, default=data.WORK, help="work folder of the recogniser's training")
    parser.add_argument("--out", type=Path, default=Path("build/train/review/bank"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.recogniser / "model"
    tokens = Tokens.read(folder / "tokens.txt")
    model = Recogniser(len(tokens.symbols), Sounds().size)
    finished = folder / "model.pt"
    saved = torch.load(finished if finished.exists() else folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(saved.get("model", saved))
    model.eval()
    options.out.mkdir(parents=True, exist_ok=True)
    for number in range(data.TRAIN_SHARDS, data.TRAIN_SHARDS + data.UNHEARD_SHARDS):
        target = options.out / f"{number:04d}.jsonl"
        if target.exists():
            continue
        shard = data.shard_path(options.recogniser / "train", number)
        rows = transcribe(model, tokens, folder / "statistics.npz", shard)
        half = target.with_suffix(".half")
        names = ("language", "said", "heard")
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
        half.write_text("\n".join(lines) + "\n", encoding="utf-8")
        half.replace(target)
        print(f"{target.name}: {len(lines)} utterances", flush=True)


if __name__ == "__main__":
    main()
