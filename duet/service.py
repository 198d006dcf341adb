"""How a program of ours starts: logs, settings, its home, the tie to its parent, then its own work."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable

from duet.claims import UP, Claim, claim, holder
from duet.claims import InUse as HomeInUse
from duet.errors import DuetError
from duet.home import HomeRefused, open_home
from duet.logs import configure_logs
from duet.programs import addresses
from duet.settings import EXIT_CONFIG, Settings, load_settings, unknown_variables
from duet.sources import SettingsError
from duet.supervise.lifeline import end_with_parent, is_supervised

logger = logging.getLogger(__name__)

FILES = 8192
"""Open files that a program may have: macOS begins with 256, fewer than the connections that are taken."""


def run(name: str, work: Callable[[Settings], int]) -> int:
    """Call `work` with the settings, and return its exit code; `EXIT_CONFIG` when the settings or the home are wrong, 1 when
    another process uses the home as this program.

    `name` is the program's in the logs. `work` returns when a signal ends the program.
    """
    configure_logs("info", name)
    try:
        settings = load_settings()
        configure_logs(settings.log_level, name)
        if not is_supervised():
            say_unknown_variables()
        prepare(settings)
        held = _claim(settings, name)
    except HomeInUse as error:
        logger.error("%s", error, extra={"action": "home_in_use"})  # noqa: TRY400 - the message is the whole cause
        return 1
    except (SettingsError, HomeRefused) as error:
        logger.error("%s", error, extra={"action": "bad_settings"})  # noqa: TRY400 - the message is the whole cause
        return EXIT_CONFIG
    end_with_parent()
    try:
        return work(settings)
    except DuetError as error:
        logger.error("%s", error, extra={"action": "cannot_start"})  # noqa: TRY400 - the message is the whole cause
        return EXIT_CONFIG
    finally:
        held.release()


def prepare(settings: Settings) -> None:
    """Make files private whatever the umask was, close the home to others, and allow enough open files. Raises `HomeRefused`."""
    os.umask(0o077)
    for mended in open_home(settings.home):
        logger.warning("%s", mended, extra={"action": "mode_mended"})
    _allow_files()


def say_unknown_variables() -> None:
    for sentence in unknown_variables():
        logger.warning("%s", sentence, extra={"action": "unknown_variable"})


def _claim(settings: Settings, name: str) -> Claim:
    """The home as its only engine or router. Meeting workers may be many."""
    address = addresses(settings).get(name)
    if address is None:
        return Claim(None)
    if not is_supervised() and (found := holder(settings.home, UP)) is not None:
        raise HomeInUse(f"`duet up` uses {settings.home} ({found}): stop it, or set DUET_HOME to another folder")
    return claim(settings.home, name, {name: address.port}, supervised=is_supervised())


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            logger.warning("only %d files can be open: %s", soft, error, extra={"action": "few_files"})
