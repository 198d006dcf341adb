"""The real meeting worker, except that one stage kills it: `python -m tests.fakes.poisoned_worker STAGE`."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace

from pipelines.__main__ import main
from pipelines.meeting import stages
from pipelines.meeting.context import Context


async def deadly(context: Context, done: dict[str, str]) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    stages.STAGES = tuple(replace(stage, run=deadly) if stage.name == sys.argv[1] else stage for stage in stages.STAGES)
    sys.exit(main())
