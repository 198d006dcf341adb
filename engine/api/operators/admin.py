"""`/v1/admin/models` shows, loads and unloads models. `/v1/admin/kv` shows and clears the KV cache."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Depends

from engine.api.shared.ports import OperatorsDep, refreshed
from engine.types import Placement

router = APIRouter(dependencies=[Depends(refreshed)])


@router.get("/v1/admin/models")
async def list_placements(operators: OperatorsDep) -> dict[str, Any]:
    """Memory, and every model that is here or was asked for: its state, memory, requests and time to live."""
    found = msgspec.to_builtins(operators.pool())
    assert isinstance(found, dict)
    return found


@router.get("/v1/admin/models/{model_id:path}/stats")
async def model_stats(model_id: str, operators: OperatorsDep) -> dict[str, Any]:
    """One model's place in the pool."""
    return _shown(operators.placement(model_id))


@router.post("/v1/admin/models/{model_id:path}/load")
async def load_model(model_id: str, operators: OperatorsDep) -> dict[str, Any]:
    """Load it, as a request for it would. Answers when it is loaded."""
    return _shown(await operators.load(model_id))


@router.post("/v1/admin/models/{model_id:path}/unload")
async def unload_model(model_id: str, operators: OperatorsDep, force: bool = False) -> dict[str, Any]:
    """Unload it, pinned or not. Answers when its memory is back. 409 while it has requests, unless `force`: they fail."""
    return _shown(await operators.unload(model_id, force=force))


@router.post("/v1/admin/models/{model_id:path}/pin")
async def pin_model(model_id: str, operators: OperatorsDep) -> dict[str, Any]:
    """Keep it loaded once it is."""
    return _shown(operators.pin(model_id, True))


@router.post("/v1/admin/models/{model_id:path}/unpin")
async def unpin_model(model_id: str, operators: OperatorsDep) -> dict[str, Any]:
    """Let it be unloaded like any other."""
    return _shown(operators.pin(model_id, False))


def _shown(placement: Placement) -> dict[str, Any]:
    found = msgspec.to_builtins(placement)
    assert isinstance(found, dict)
    return found


@router.get("/v1/admin/kv")
async def kv_status(operators: OperatorsDep) -> dict[str, Any]:
    """KV on this machine: the caps, a directory for each model, and what each loaded model reports."""
    found = msgspec.to_builtins(await operators.kv())
    assert isinstance(found, dict)
    return found


@router.delete("/v1/admin/kv")
async def clear_kv(operators: OperatorsDep, model: str | None = None) -> dict[str, Any]:
    """Forget the KV of `model`, or of all models. Loaded models forget theirs between two steps, after this answer."""
    return {"cleared_entries": await operators.clear_kv(model)}
