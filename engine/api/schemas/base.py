"""What all objects of requests have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Lenient(BaseModel):
    """Unknown fields are kept, to be reported."""

    model_config = ConfigDict(extra="allow")
