"""`GET /v1/models[/{id}]`, `/health`, `/ready`."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request

from duet.errors import Unavailable
from engine.api.shared.ports import ModelsDep
from engine.types import ModelInfo

router = APIRouter()


@router.get("/v1/models")
async def list_models(models: ModelsDep) -> dict[str, Any]:
    """Models on this machine, folders that cannot be used (state unusable), then models that can be fetched (state absent)."""
    return {"object": "list", "data": [_shown(model) for model in await models.list()]}


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, models: ModelsDep) -> dict[str, Any]:
    """One model by id, alias, role or repo id."""
    return _shown(await models.resolve(model_id))


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request, models: ModelsDep) -> dict[str, Any]:
    """The engine can serve at least one model, which is here or is fetched when first asked for. Else 503 and what to do.
    `resting`: programs beside it that crashed again and again."""
    known = [model for model in await models.list() if not model.problem]
    if not known:
        raise Unavailable("no model is on this machine and downloads are off: set engine.model_dirs or engine.hub")
    rests = request.app.state.resting()
    return {
        "status": "ready",
        "models": sum(model.state != "absent" for model in known),
        **({"resting": rests} if rests else {}),
    }


def _shown(model: ModelInfo) -> dict[str, Any]:
    """OpenAI's object, with a field `duet` for what it has no place for."""
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "duet-demonstration" if model.demonstration else "duet",
        "duet": {
            "aliases": sorted(model.aliases),
            "roles": list(model.roles),
            "state": model.state,
            "problem": model.problem,
            "demonstration": model.demonstration,
            "description": model.description,
            "context": model.context,
            "bytes_on_disk": model.bytes_on_disk,
            "review": msgspec.to_builtins(model.review),
        },
    }
