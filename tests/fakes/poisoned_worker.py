"""The real meeting worker, except that one stage takes it down: `python -m tests.fakes.poisoned_worker STAGE`."""

from __future__ import annotations

import os
import signal
import sys

from pipelines.__main__ import main
from pipelines.meeting import workflow
from pipelines.meeting.stages import Context


def poison(stage: str) -> None:
    async def deadly(context: Context, done: dict[str, str]) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    workflow.TABLE[stage] = deadly  # type: ignore[index]


if __name__ == "__main__":
    poison(sys.argv[1])
    sys.exit(main())
