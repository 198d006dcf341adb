"""`POST /v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from duet.http.json_bodies import JsonRoute
from engine.api.dialects.completions.replies import CompletionReply
from engine.api.dialects.completions.requests import to_requests
from engine.api.dialects.completions.schema import CompletionRequest, ignored_fields
from engine.api.respond import respond
from engine.api.shared.caller import caller_of
from engine.api.shared.headers import answer_headers
from engine.api.shared.ports import ModelsDep, WorkDep

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request, work: WorkDep, models: ModelsDep) -> Response:
    """Continue raw prompts, whole or streamed: texts or token ids, without a chat template. Fields without effect are named in
    the header X-Duet-Ignored."""
    model = await models.resolve(body.model)
    return await respond(
        CompletionReply(model.id, n=body.n or 1, include_usage=body.include_usage),
        to_requests(body, model, caller_of(request)),
        request=request,
        work=work,
        waiting=lambda: models.progress(model.id),
        stream=bool(body.stream),
        headers=answer_headers(model, ignored_fields(body)),
    )
