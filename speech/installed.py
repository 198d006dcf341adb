"""Where the models of this library lie."""

from __future__ import annotations

from pathlib import Path

import models
from duet.settings import Settings


def installed_model(settings: Settings, *, chosen: Path | None, embedded_id: str, name: str) -> Path | None:
    """A model's folder: the one that the settings choose, the embedded one, or $DUET_HOME/models/NAME; None when there is
    none."""
    if chosen is not None:
        return chosen
    if settings.embedded:
        return models.EMBEDDED / embedded_id
    folder = settings.home / "models" / name
    return folder if folder.is_dir() else None
