"""The ASR router: `python -m asr_router`. Settings from $DUET_HOME/config.toml and the environment."""

from __future__ import annotations

import sys

from duet import service
from duet.http.server import run_server
from duet.keys import api_key
from duet.settings import Settings


def serve(settings: Settings) -> int:
    # A second of imports: after the settings are known to be good.
    from asr_router.app import create_app, create_transcriber

    key = api_key(settings.home)
    app = create_app(settings, create_transcriber(settings, key=key), key=key)
    return run_server(app, settings.router.host, settings.router.port, log_level=settings.log_level)


if __name__ == "__main__":
    sys.exit(service.run("router", serve))
