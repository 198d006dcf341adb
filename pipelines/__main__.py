"""The meeting worker: `python -m pipelines`. Settings from $DUET_HOME/config.toml and the environment."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from duet.logs import configure_logs
from duet.settings import EXIT_CONFIG, Settings, SettingsError, load_settings
from duet.supervise import end_with_parent

logger = logging.getLogger(__name__)


def main() -> int:
    configure_logs("info", "meetings")
    try:
        settings = load_settings()
    except SettingsError as error:
        logger.error("%s", error, extra={"action": "bad_settings"})  # noqa: TRY400 - the message is the whole cause
        return EXIT_CONFIG
    configure_logs(settings.log_level, "meetings")
    end_with_parent()
    asyncio.run(_run(settings))
    return 0


async def _run(settings: Settings) -> None:
    from pipelines.jobs import MeetingWorker  # a second of imports: after the settings are known to be good

    working = asyncio.current_task()
    assert working is not None
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, working.cancel)
    try:
        await MeetingWorker(settings).run()
    except asyncio.CancelledError:
        logger.info("stopped", extra={"action": "stopped"})


if __name__ == "__main__":
    sys.exit(main())
