"""`GET /v1/models`, `/health`, `/ready`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from asr_router.routes.transcriptions import MODELS
from asr_router.service import NO_MODEL
from duet.errors import ModelNotFound, Unavailable

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    health = await request.app.state.transcriptions.health()
    names = {**MODELS, **request.app.state.model_ids}
    data = []
    for name, backend in names.items():
        usable = getattr(health, backend) if backend else health.sensevoice or health.qwen3_asr
        embedded = name in request.app.state.model_ids
        data.append(
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "duet-demonstration" if embedded else "duet",
                "duet": {"roles": ["asr"], "backend": backend or "auto", "ready": usable, "demonstration": embedded},
            }
        )
    return {"object": "list", "data": data}


@router.get("/v1/models/{model_id}")
async def get_model(model_id: str, request: Request) -> dict[str, Any]:
    listed = (await list_models(request))["data"]
    for model in listed:
        if model["id"] == model_id:
            found: dict[str, Any] = model
            return found
    raise ModelNotFound(f"there is no model {model_id!r}", param="model")


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, Any]:
    """A recogniser can be used; 503 with the cause and the fix when none can. `meetings`: their store is open."""
    found = await request.app.state.transcriptions.health()
    if not found.sensevoice and not found.qwen3_asr:
        raise Unavailable(NO_MODEL, retry_after_seconds=60)
    return {
        "status": "ready",
        "sensevoice": found.sensevoice,
        "qwen3_asr": found.qwen3_asr,
        "meetings": request.app.state.meetings is not None,
    }
