"""How a program of ours starts: logs, settings, the tie to its parent, then its own work."""

from __future__ import annotations

import logging
from collections.abc import Callable

from duet.logs import configure_logs
from duet.settings import EXIT_CONFIG, Settings, SettingsError, load_settings
from duet.supervise.lifeline import end_with_parent

logger = logging.getLogger(__name__)


def run(name: str, work: Callable[[Settings], int]) -> int:
    """Call `work` with the settings, and return its exit code; `EXIT_CONFIG` when the settings are wrong.

    `name` is the program's in the logs. `work` returns when a signal ends the program.
    """
    configure_logs("info", name)
    try:
        settings = load_settings()
    except SettingsError as error:
        logger.error("%s", error, extra={"action": "bad_settings"})  # noqa: TRY400 - the message is the whole cause
        return EXIT_CONFIG
    configure_logs(settings.log_level, name)
    end_with_parent()
    return work(settings)
