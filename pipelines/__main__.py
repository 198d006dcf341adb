"""The meeting worker: `python -m pipelines`. Settings from $DUET_HOME/config.toml and the environment."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from functools import partial

from duet import service
from duet.errors import DuetError
from duet.settings import Settings

logger = logging.getLogger(__name__)


def main() -> int:
    return service.run("meetings", work)


EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits(3): whoever started this program shall start it again


def work(settings: Settings) -> int:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    # A second of imports: after the settings are known to be good.
    from pipelines.jobs.kinds import Kind
    from pipelines.jobs.store import WORKFLOW
    from pipelines.jobs.worker import MeetingWorker
    from pipelines.meeting.stages import STAGES, run_stage

    working = asyncio.current_task()
    assert working is not None
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, working.cancel)
    meeting = Kind(WORKFLOW, {stage.name: partial(run_stage, stage) for stage in STAGES})
    try:
        await MeetingWorker(settings, meeting).run()
    except asyncio.CancelledError:
        logger.info("stopped", extra={"action": "stopped"})
        return 0
    except DuetError as error:  # the next start waits until it can be used
        logger.error("%s", error, extra={"action": "store_lost"})  # noqa: TRY400 - the message is the whole cause
    return EXIT_AGAIN


if __name__ == "__main__":
    sys.exit(main())
