"""`POST /v1/embeddings` (https://platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import base64
import secrets
from typing import Any, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator

from duet.http.disconnect import unless_gone
from engine.api.deadlines import deadline_of
from engine.api.dependencies import ModelsDep, WorkDep, answer_headers, priority_of, tenant_of
from engine.types import Embedded, EmbeddingRequest, only

router = APIRouter()

MAX_INPUTS = 2048
MAX_VOCABULARY = 1 << 31

Inputs = tuple[str | tuple[int, ...], ...]


class EmbeddingsBody(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: StrictStr = Field(min_length=1, max_length=512)
    input: Any = Field(description="A string, strings, token ids, or lists of token ids.")
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: StrictInt | None = Field(None, ge=1, le=1 << 20)

    @field_validator("input")
    @classmethod
    def _normalised(cls, value: Any) -> Inputs:
        # A union of four types would report four complaints about types that the client never meant.
        return as_inputs(value)


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsBody, request: Request, work: WorkDep, models: ModelsDep) -> Response:
    """One normalised vector an input, in order."""
    model = models.resolve(body.model)
    asked = EmbeddingRequest(
        id=secrets.token_hex(8),
        model=model.id,
        inputs=body.input,
        dimensions=body.dimensions,
        tenant=tenant_of(request),
        priority=priority_of(request),
        deadline=deadline_of(request),
    )
    result = await unless_gone(request, only(work.run(asked), Embedded))
    vectors = np.frombuffer(result.vectors, dtype="<f4").reshape(-1, result.dimensions)
    rows: list[str] | list[list[float]]
    if body.encoding_format == "base64":
        rows = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    else:
        rows = vectors.tolist()
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": model.id,
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }
    headers = answer_headers(model, (name for name, value in (body.model_extra or {}).items() if value is not None))
    return Response(msgspec.json.encode(answer), media_type="application/json", headers=headers)


def as_inputs(given: Any) -> Inputs:
    """A text, texts, token ids, or lists of token ids as inputs of one vector each. Raises `ValueError`."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ValueError("a string, a list of strings, a list of token ids or a list of such lists, not empty")
    if _is_token(given[0]):
        given = [given]
    if len(given) > MAX_INPUTS:
        raise ValueError(f"{len(given)} inputs; a request takes {MAX_INPUTS}")
    return tuple(_as_input(item, i) for i, item in enumerate(given))


def _as_input(item: Any, index: int) -> str | tuple[int, ...]:
    if isinstance(item, str) and item:
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"input {index} is not valid Unicode") from error
        return item
    if isinstance(item, list) and item and all(_is_token(token) for token in item):
        return tuple(item)
    raise ValueError(f"input {index} is neither a text nor a list of token ids, or it is empty")


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < MAX_VOCABULARY
