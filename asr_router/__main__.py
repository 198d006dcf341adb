"""The ASR router: `python -m asr_router`. Settings from $DUET_HOME/config.toml and the environment."""

from __future__ import annotations

import logging
import sys

from duet.http.server import run_server
from duet.keys import api_key
from duet.logs import configure_logs
from duet.settings import EXIT_CONFIG, SettingsError, load_settings
from duet.supervise import end_with_parent

logger = logging.getLogger(__name__)


def main() -> int:
    configure_logs("info", "router")
    try:
        settings = load_settings()
    except SettingsError as error:
        logger.error("%s", error, extra={"action": "bad_settings"})  # noqa: TRY400 - the message is the whole cause
        return EXIT_CONFIG
    configure_logs(settings.log_level, "router")
    end_with_parent()
    from asr_router.app import create_app, create_service

    key = api_key(settings.home)
    app = create_app(settings, create_service(settings, key=key), key=key)
    return run_server(app, settings.router.host, settings.router.port, log_level=settings.log_level)


if __name__ == "__main__":
    sys.exit(main())
