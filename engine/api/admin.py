"""`/v1/admin/kv`: what the KV cache holds, and its end."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter

from engine.api.dependencies import BackendDep

router = APIRouter()


@router.get("/v1/admin/kv")
async def kv_status(backend: BackendDep) -> dict[str, Any]:
    """KV on this machine: the caps, a directory for each model, and what each loaded model reports."""
    found = msgspec.to_builtins(await backend.kv())
    assert isinstance(found, dict)
    return found


@router.delete("/v1/admin/kv")
async def clear_kv(backend: BackendDep, model: str | None = None) -> dict[str, Any]:
    """Forget the KV of `model`, or of all models. Loaded models forget theirs in the course of their work."""
    return {"cleared_entries": await backend.clear_kv(model)}
