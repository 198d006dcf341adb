"""The rings that need more than the lock: `make prove`. Under CI a ring whose tool is missing fails; elsewhere it says so."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", default="", help="folder of real recordings")
    parser.add_argument("--eval", default="", help="folder of frozen evaluation speech, for the leak test")
    arguments = parser.parse_args()
    environment = dict(os.environ)
    for name, folder in (("DUET_TEST_AUDIO", arguments.audio), ("DUET_TEST_EVAL", arguments.eval)):
        if folder and Path(folder).is_dir():
            environment[name] = str(Path(folder).absolute())
    # Recordings cannot be fetched: they are not ours to ship, so their ring alone may be missing under CI too.
    missing = {
        "recordings": "" if "DUET_TEST_AUDIO" in environment else "DUET_TEST_AUDIO names no folder of recordings",
        "debian": ""
        if shutil.which("espeak-ng") and shutil.which("systemd-analyze")
        else "espeak-ng or systemd-analyze is missing",
        "wheel": "" if shutil.which("uv") or Path(".uv/bin/uv").exists() else "uv is missing",
    }
    failed = []
    for ring, reason in missing.items():
        if reason:
            print(f"ring {ring}: NOT RUN: {reason}", flush=True)
            if "CI" in os.environ and ring != "recordings":
                failed.append(ring)
            continue
        print(f"ring {ring}", flush=True)
        code = subprocess.run([sys.executable, "-m", "pytest", "-m", ring], env=environment, check=False).returncode
        if code:
            failed.append(ring)
    print("all rings that ran passed" if not failed else f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
