"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from duet.http.disconnect import unless_gone
from duet.http.json_bodies import JsonRoute
from engine.api.dialects.chat.replies import ChatReply
from engine.api.dialects.chat.requests import to_requests
from engine.api.dialects.chat.schema import ChatCompletionRequest, ignored_fields
from engine.api.respond import respond
from engine.api.shared.caller import caller_of
from engine.api.shared.headers import answer_headers
from engine.api.shared.pictures import PicturesDep
from engine.api.shared.ports import ModelsDep, WorkDep

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions")
async def chat_completions(
    body: ChatCompletionRequest, request: Request, work: WorkDep, models: ModelsDep, pictures: PicturesDep
) -> Response:
    """Chat with text and images, whole or streamed. Fields without effect are named in the header X-Duet-Ignored."""
    model = await models.resolve(body.model)
    asked = await unless_gone(request, to_requests(body, model, caller_of(request), pictures))
    return await respond(
        ChatReply(model.id, choices=len(asked), include_usage=body.include_usage),
        asked,
        request=request,
        work=work,
        waiting=lambda: models.progress(model.id),
        stream=bool(body.stream),
        headers=answer_headers(model, ignored_fields(body)),
    )
