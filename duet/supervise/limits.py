"""Bounds on what a child process may take. It sets them itself, before it runs its module.

`python -m duet.supervise.limits --memory BYTES --file BYTES --open N MODULE ARGUMENTS…`

Linux refuses memory beyond the bound (`RLIMIT_DATA`), and a thread that looks at the process's memory ends it. macOS only has
the thread, because its kernel ignores the bound.
"""

from __future__ import annotations

import argparse
import os
import resource
import runpy
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY_EXIT = 86
"""Exit code of a child that took more memory than it may."""
_LOOK_SECONDS = 0.1
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Limits:
    """`memory_bytes` of resident memory, `file_bytes` in any one file that it writes, `open_files` at once."""

    memory_bytes: int
    file_bytes: int
    open_files: int = 64

    def arguments(self, module: str) -> tuple[str, ...]:
        """What follows `python -m` to run `module` within these limits."""
        return (
            *(__name__, "--memory", str(self.memory_bytes), "--file", str(self.file_bytes)),
            *("--open", str(self.open_files), module),
        )

    def apply(self) -> None:
        """Bind this process, for good."""
        for which, wanted in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, self.file_bytes),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_DATA, self.memory_bytes),
        ):
            _, hard = resource.getrlimit(which)
            bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(which, (bound, bound))
        threading.Thread(target=self._watch, name="memory-limit", daemon=True).start()

    def _watch(self) -> None:
        while _resident_bytes() <= self.memory_bytes:
            time.sleep(_LOOK_SECONDS)
        os._exit(MEMORY_EXIT)


def _resident_bytes() -> int:
    """This process's memory now. macOS tells the peak, which is as good here; Linux's peak begins with that of the process that
    started this one."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(_STATM.read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(prog="duet.supervise.limits", description="Runs a module within limits.")
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--file", type=int, required=True)
    parser.add_argument("--open", type=int, required=True)
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    Limits(given.memory, given.file, given.open).apply()
    sys.argv = [given.module, *given.arguments]
    runpy.run_module(given.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
