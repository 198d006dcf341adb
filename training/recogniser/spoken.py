"""Natural sentences in voices that training does not use: the development set that decides when to stop.

    python -m training.recogniser.spoken --out build/train/recogniser/spoken
    duet bench cer --manifest build/train/recogniser/spoken/spoken.jsonl --model MODEL_FOLDER --arms none

Each sentence of `spoken.txt` becomes one recording beside a manifest. Needs espeak-ng, but no torch.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Final

from speech.wav import as_wav
from training import voices

FILE: Final = Path(__file__).with_name("spoken.txt")
SEED: Final = 17


def write(folder: Path) -> Path:
    """Make the recordings, all from one seed, and the manifest. Returns the manifest's path. Raises RuntimeError if
    espeak-ng fails and FileNotFoundError if it is not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    rows = []
    for number, text in enumerate(FILE.read_text(encoding="utf-8").splitlines()):
        voice = voices.DEVELOPMENT_VARIANTS[number % len(voices.DEVELOPMENT_VARIANTS)]
        samples = voices.distort(voices.speak(text, voice, rng), rng)
        audio = folder / f"{number:03d}.wav"
        audio.write_bytes(as_wav(samples))
        rows.append({"id": f"spoken{number:03d}", "audio": audio.name, "text": text, "voice": voice})
    manifest = folder / "spoken.jsonl"
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return manifest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    print(write(parser.parse_args().out))
