"""The decoding child, made to die, stall or bloat by files that say so: no file is known that still does it to the real one."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from speech.decoding.child import decode as child

_decode = child.decode


def decode(path: Path, target: Path, **options: Any) -> child.Result:
    match path.read_bytes()[:20].split():
        case [b"DO", b"stall"]:
            time.sleep(600)
        case [b"DO", b"bloat"]:
            held = bytearray(os.urandom(1 << 20) * 2000)
            time.sleep(5)
            del held
        case [b"DO", name]:
            os.kill(os.getpid(), signal.Signals[name.decode()])
            time.sleep(5)
    return _decode(path, target, **options)


if __name__ == "__main__":
    child.decode = decode
    sys.exit(child.main())
