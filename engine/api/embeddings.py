"""`POST /v1/embeddings` (https://platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import base64
import secrets
from typing import Annotated, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from duet.errors import InvalidRequest
from engine.api.dependencies import BackendDep, ignored_header
from engine.api.sse import unless_gone
from engine.types import EmbeddingRequest

router = APIRouter()

MAX_INPUTS = 2048

Tokens = Annotated[list[StrictInt], Field(min_length=1)]


class EmbeddingsBody(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: StrictStr = Field(min_length=1)
    input: StrictStr | list[StrictStr] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: StrictInt | None = Field(None, ge=1)


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsBody, request: Request, backend: BackendDep) -> Response:
    model = backend.resolve(body.model)
    asked = EmbeddingRequest(
        id=secrets.token_hex(8), model=model.id, inputs=_inputs(body.input), dimensions=body.dimensions
    )
    result = await unless_gone(request, backend.embed(asked))
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
    headers = ignored_header(body.model_extra)
    return Response(msgspec.json.encode(answer), media_type="application/json", headers=headers)


def _inputs(given: str | list[str] | list[int] | list[list[int]]) -> tuple[str | tuple[int, ...], ...]:
    """A text, texts, token ids, or lists of token ids as inputs of one vector each."""
    items: list[str | tuple[int, ...]] = []
    if isinstance(given, str):
        items = [given]
    else:
        numbers = tuple(item for item in given if isinstance(item, int))
        items = (
            [numbers] if numbers else [i if isinstance(i, str) else tuple(i) for i in given if not isinstance(i, int)]
        )
    if not items or any(not item for item in items):
        raise InvalidRequest("input must not be empty", param="input")
    if len(items) > MAX_INPUTS:
        raise InvalidRequest(f"{len(items)} inputs; a request takes {MAX_INPUTS}", param="input")
    return tuple(items)
