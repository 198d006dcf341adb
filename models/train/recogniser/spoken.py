"""Sentences as people say them, in voices that were not trained: the development set that decides when to stop.

    python -m models.train.recogniser.spoken MODEL_FOLDER        # CER of an exported recogniser (needs sherpa-onnx)
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Final

from models.train import voices
from models.train.recogniser.train import distance
from models.train.sentences import PUNCTUATION

FILE: Final = Path(__file__).with_name("spoken.txt")


def language(text: str) -> str:
    han, latin = any("\u4e00" <= c <= "\u9fff" for c in text), any(c.isascii() and c.isalpha() for c in text)
    return "mixed" if han and latin else "zh" if han else "en"


def bare(text: str) -> str:
    return "".join(c for c in text.lower() if c not in PUNCTUATION and c != " ")


def error_rates(folder: Path) -> dict[str, float]:
    """CER by language, without punctuation and spaces, each sentence once in a development voice."""
    import sherpa_onnx

    recogniser = sherpa_onnx.OfflineRecognizer.from_sense_voice(
        model=str(folder / "model.int8.onnx"), tokens=str(folder / "tokens.txt"), num_threads=1, use_itn=True, language="auto"
    )
    wrong: dict[str, int] = {}
    total: dict[str, int] = {}
    rng = random.Random(17)
    for i, text in enumerate(FILE.read_text(encoding="utf-8").splitlines()):
        samples = voices.speak(text, voices.DEVELOPMENT_VARIANTS[i % len(voices.DEVELOPMENT_VARIANTS)], rng)
        stream = recogniser.create_stream()
        stream.accept_waveform(voices.RATE, voices.distort(samples, rng))
        recogniser.decode_stream(stream)
        for group in (language(text), "all"):
            wrong[group] = wrong.get(group, 0) + distance(bare(stream.result.text), bare(text))
            total[group] = total.get(group, 0) + len(bare(text))
        print(f"{text}\n    {stream.result.text}", flush=True)
    return {group: wrong[group] / total[group] for group in total}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print({group: f"{100 * rate:.1f}%" for group, rate in error_rates(parser.parse_args().folder).items()})
