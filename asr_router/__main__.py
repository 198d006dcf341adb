"""The ASR router: `python -m asr_router`. Settings from $DUET_HOME/config.toml and the environment."""

from __future__ import annotations

import sys

from duet import service
from duet.http.server import run_server
from duet.keys import api_key
from duet.settings import Settings


def serve(settings: Settings) -> int:
    from asr_router.app import (  # a second of imports: after the settings are known to be good
        create_app,
        create_service,
    )

    key = api_key(settings.home)
    app = create_app(settings, create_service(settings, key=key), key=key)
    return run_server(app, settings.router.host, settings.router.port, log_level=settings.log_level)


if __name__ == "__main__":
    sys.exit(service.run("router", serve))
