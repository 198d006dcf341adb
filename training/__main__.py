"""Retrain every embedded model: data, training, export, in order.

    make train                                  # or, with your own environment:
    python -m training [STAGE …] [--list]

An interrupted stage continues where it stopped, and a finished stage is skipped (delete its folder under `build/train`
to repeat it). `make train` then measures the models with `training.evaluate`. That runs in the project's own
environment, because the environment for training has no services. Training needs espeak-ng, a word list and WordNet:
`apt-get install espeak-ng wamerican wordnet-base`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from models import EMBEDDED

WORK: Final = Path("build/train")
STAGES: Final[dict[str, tuple[list[str], ...]]] = {
    "recogniser": (
        ["recogniser.data"],
        ["recogniser.train"],
        ["recogniser.export", "--out", str(EMBEDDED / "duet-tiny-asr")],
    ),
    "review": (["review.bank"], ["review.train", "--out", str(EMBEDDED / "duet-tiny-chat")]),
    "speaker": (["speaker", "--out", str(EMBEDDED / "duet-tiny-speaker")],),
    "embedding": (["embedding", "--out", str(EMBEDDED / "duet-tiny-embed")],),
    "vision": (["vision", "--out", str(EMBEDDED / "duet-tiny-vl")],),
}
"""Modules of this package with their arguments, by stage. The review model learns from the recogniser's mistakes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"any of {', '.join(STAGES)}; default: all")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}")
    for name, commands in STAGES.items():
        if options.stages and name not in options.stages:
            continue
        for module, *arguments in commands:
            command = [sys.executable, "-m", f"training.{module}", *arguments]
            print(" ".join(command), flush=True)
            if options.list:
                continue
            if missing := [tool for tool in ("espeak-ng",) if shutil.which(tool) is None]:
                parser.error(f"{missing[0]} is missing: apt-get install espeak-ng wamerican wordnet-base")
            done, began = WORK / f"{module}.done", time.monotonic()
            if done.exists():
                print(f"  already done: {done}", flush=True)
                continue
            code = subprocess.run(command, check=False).returncode
            if code != 0:
                return code
            done.parent.mkdir(parents=True, exist_ok=True)
            done.write_text(f"{time.monotonic() - began:.0f} s\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
