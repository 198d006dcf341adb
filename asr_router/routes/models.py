"""`GET /v1/models`, `/health`, `/ready`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from asr_router.routes.transcriptions import model_names
from asr_router.transcribing import NO_MODEL
from duet.errors import DuetError, ModelNotFound, Unavailable

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    health = await request.app.state.transcriber.health()
    data = []
    for name, recogniser in model_names(request).items():
        usable = health[recogniser] if recogniser else any(health.values())
        embedded = name in request.app.state.demonstrations
        data.append(
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "duet-demonstration" if embedded else "duet",
                "duet": {"roles": ["asr"], "backend": recogniser or "auto", "ready": usable, "demonstration": embedded},
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
    """A recogniser can be used; 503 with the cause and the fix when none can. `meetings`: their store is open, and else
    `meetings_problem` says why not. `resting`: programs beside it that crashed again and again."""
    health = await request.app.state.transcriber.health()
    if not any(health.values()):
        raise Unavailable(NO_MODEL, retry_after_seconds=60)
    found, rests = request.app.state.meetings, request.app.state.resting()
    said: dict[str, Any] = {"status": "ready", **health, "meetings": not isinstance(found, DuetError)}
    if isinstance(found, DuetError):
        said["meetings_problem"] = found.message
    return said | ({"resting": rests} if rests else {})
