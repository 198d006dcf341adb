"""`POST /v1/embeddings` (https://platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import base64
import secrets
from typing import Any, Literal

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictInt, StrictStr, field_validator

from duet.http.disconnect import unless_gone
from duet.http.json_bodies import JsonRoute
from engine.api.shared.caller import caller_of
from engine.api.shared.fields import Inputs, Lenient, as_inputs, ignored
from engine.api.shared.headers import answer_headers
from engine.api.shared.length import check_length
from engine.api.shared.ports import ModelsDep, WorkDep
from engine.types import Embedded, EmbeddingRequest, only

router = APIRouter(route_class=JsonRoute)

MAX_INPUTS = 2048


class EmbeddingsBody(Lenient):
    model: StrictStr = Field(min_length=1, max_length=512)
    input: Any = Field(description="A string, strings, token ids, or lists of token ids.")
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: StrictInt | None = Field(None, ge=1, le=1 << 20)

    @field_validator("input")
    @classmethod
    def _normalised(cls, value: Any) -> Inputs:
        # A union of four types would report four complaints about types that the client never meant.
        return as_inputs(value, MAX_INPUTS, "input")


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsBody, request: Request, work: WorkDep, models: ModelsDep) -> Response:
    """One normalised vector for each input, in order."""
    model, caller = await models.resolve(body.model), caller_of(request)
    for i, item in enumerate(body.input):
        check_length(item, model, "input", place=f"input[{i}]")
    asked = EmbeddingRequest(
        id=secrets.token_hex(8),
        model=model.id,
        inputs=body.input,
        dimensions=body.dimensions,
        tenant=caller.tenant,
        priority=caller.priority,
        deadline=caller.deadline,
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
    headers = answer_headers(model, ignored([(body, "")]))
    return Response(msgspec.json.encode(answer), media_type="application/json", headers=headers)
