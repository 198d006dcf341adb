"""The wire as OpenAI's own client reads it, and where we say more."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio
from openai.types.audio import TranscriptionVerbose

from tests.fakes.engine_service import KEY, EngineService, chat_body, engine_service, model_folder
from tests.sounds import pcm, tone, wav

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineService]:
    home = tmp_path_factory.mktemp("engine")
    models = home / "models"
    model_folder(models, "talker")
    model_folder(models, "tiny-embed", capabilities=["embedding"])
    model_folder(models, "listener", model_type="qwen3_asr", capabilities=["asr"])
    async with engine_service(home, models) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(engine: EngineService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(pcm(tone(0.5))))
    return path


def says(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def frames(engine: EngineService, body: dict[str, Any]) -> list[str]:
    answer = await engine.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]


async def test_a_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="talker", messages=says("hello"))
    assert answer.object == "chat.completion"
    assert answer.model == "talker"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "hello!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


async def test_a_role_answers_with_the_models_id(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="chat", messages=says("hello"))
    assert answer.model == "talker"


async def test_max_tokens_ends_with_length(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="talker", messages=says("hello"), max_completion_tokens=1)
    assert answer.choices[0].finish_reason == "length"


async def test_a_streamed_chat(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="talker", messages=says("good morning"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:-2]] == ["goo", "d m", "orn", "ing", "!"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 11
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_ends_with_done_and_has_usage_only_when_asked(engine: EngineService) -> None:
    plain = await frames(engine, chat_body("hello", stream=True))
    assert plain[-1] == "[DONE]"
    assert not any("usage" in frame for frame in plain)
    asked = await frames(engine, chat_body("hello", stream=True, stream_options={"include_usage": True}))
    assert all("usage" in json.loads(frame) for frame in asked[:-1])


async def test_thoughts_are_counted_and_not_shown(client: openai.AsyncOpenAI, engine: EngineService) -> None:
    answer = await client.chat.completions.create(model="talker", messages=says("think"))
    assert answer.choices[0].message.content == "think!"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 + 2
    streamed = await frames(engine, chat_body("think", stream=True))
    said = [json.loads(frame)["choices"][0]["delta"] for frame in streamed[:-1]]
    assert [delta.get("content") for delta in said] == ["", "thi", "nk", "!", None]


async def test_a_failure_after_the_status_is_an_error_event(engine: EngineService) -> None:
    sent = await frames(engine, chat_body("break", stream=True))
    error = json.loads(sent[-1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "token" in sent[1]


async def test_n_choices_are_streamed_each_with_its_index(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="talker", messages=says("hello"), n=3, stream=True)
    texts, reasons = ["", "", ""], []
    async for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
    assert (texts, reasons) == (["hello!"] * 3, ["stop"] * 3)


async def test_n_choices_count_their_prompt_once(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="talker", messages=says("hello"), n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 4)


async def test_logprobs_have_bytes_and_alternatives(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="talker", messages=says("héllo"), logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [item.token for item in logprobs.content] == ["hél", "lo"]
    assert logprobs.content[0].bytes == list("hél".encode())
    assert math.isclose(logprobs.content[0].logprob, -0.5)
    assert len(logprobs.content[0].top_logprobs) == 2


async def test_streamed_logprobs_come_with_their_token(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="talker", messages=says("hello"), logprobs=True, stream=True)
    tokens = [
        item.token
        async for chunk in stream
        if chunk.choices[0].logprobs
        for item in chunk.choices[0].logprobs.content or []
    ]
    assert tokens == ["hel", "lo"]


async def test_what_has_no_effect_is_reported_and_nothing_else(engine: EngineService) -> None:
    body = chat_body("hello", user="me", store=None, service_tier="auto")
    body["messages"][0]["cache_control"] = {"type": "ephemeral"}
    answer = await engine.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["X-Duet-Ignored"] == "user, service_tier, messages.cache_control"
    assert "X-Duet-Ignored" not in (await engine.chat("hello", temperature=0.5, stop="x", tools=[])).headers


async def test_an_image_detail_that_has_no_effect_is_reported(engine: EngineService) -> None:
    dot = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    image = {"type": "image_url", "image_url": {"url": dot, "detail": "high"}}
    body = {"model": "talker", "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}, image]}]}
    answer = await engine.client.post("/v1/chat/completions", json=body)
    assert answer.headers["X-Duet-Ignored"] == "messages.content.image_url.detail"


async def test_what_a_client_echoes_of_our_answers_is_no_unknown_field(engine: EngineService) -> None:
    message = {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "annotations": []}
    body = {"model": "talker", "messages": [message, {"role": "user", "content": "hello"}]}
    answer = await engine.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert "X-Duet-Ignored" not in answer.headers


async def test_errors_reach_the_client_as_its_own_classes(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nobody", messages=says("hello"))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="talker", messages=says("refuse"), stream=True)
    assert (wrong.value.code, wrong.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.APIError):
        async for _ in await client.chat.completions.create(model="talker", messages=says("break"), stream=True):
            pass


async def test_embeddings_as_floats_and_as_base64(engine: EngineService, client: openai.AsyncOpenAI) -> None:
    # The client asks for base64 by itself and decodes it.
    answer = await client.embeddings.create(model="embedding", input=["a", "bc"])
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.data[1].embedding[:3] == [0.0, 1.0, 0.0]
    assert (answer.model, answer.usage.prompt_tokens) == ("tiny-embed", 3)
    floats = await client.embeddings.create(model="embedding", input="a", encoding_format="float", dimensions=4)
    assert floats.data[0].embedding == [1.0, 0.0, 0.0, 0.0]
    body = {"model": "embedding", "input": "a", "encoding_format": "base64"}
    raw = (await engine.client.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(raw), "<f4").tolist() == [1.0] + [0.0] * 7


@pytest.mark.parametrize(("given", "vectors"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)])
async def test_every_form_of_embedding_input(client: openai.AsyncOpenAI, given: Any, vectors: int) -> None:
    assert len((await client.embeddings.create(model="tiny-embed", input=given)).data) == vectors


async def test_a_transcription_hands_prompt_and_hotwords_on(client: openai.AsyncOpenAI, clip: Path) -> None:
    answer = await client.audio.transcriptions.create(
        model="asr", file=clip, prompt="a talk", language="en", extra_body={"hotwords": "Duet, MLX"}
    )
    assert answer.text == "prompt=a talk hotwords=Duet/MLX language=en"


@pytest.mark.parametrize(
    ("language", "code"),
    [("zh-CN", "zh"), ("english", "en"), ("中文", "zh"), ("fre", "fr"), ("auto", None), ("", None)],
)
async def test_a_language_is_taken_in_every_form(
    engine: EngineService, clip: Path, language: str, code: str | None
) -> None:
    files = {"file": ("clip.wav", clip.read_bytes())}
    data = {"model": "asr", "language": language, "response_format": "verbose_json"}
    answer = (await engine.client.post("/v1/audio/transcriptions", data=data, files=files)).json()
    assert f"language={code}" in answer["text"]
    TranscriptionVerbose.model_validate(answer, strict=True)


async def test_each_channel_is_heard_for_itself(engine: EngineService) -> None:
    both = np.stack([tone(1.0), tone(1.0, hertz=900.0)], axis=1)
    files = {"file": ("clip.wav", wav(np.round(both * 32767).astype("<i2").tobytes(), channels=2))}
    data = {"model": "asr", "channels": "each", "response_format": "verbose_json"}
    answer = (await engine.client.post("/v1/audio/transcriptions", data=data, files=files)).json()
    assert [segment["channel"] for segment in answer["segments"]] == [1, 2]
    TranscriptionVerbose.model_validate(answer, strict=True)


@pytest.mark.parametrize("language", ["qq", "klingonish", "zh-"])
async def test_what_is_no_language_is_refused(engine: EngineService, clip: Path, language: str) -> None:
    files = {"file": ("clip.wav", clip.read_bytes())}
    answer = await engine.client.post(
        "/v1/audio/transcriptions", data={"model": "asr", "language": language}, files=files
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "language")
    assert "the nearest is" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields", [{"keywords[]": ["Duet", "MLX"]}, {"keywords": "Duet,MLX"}, {"hotwords": '["Duet", "MLX"]'}]
)
async def test_hotwords_in_every_form_that_clients_send(
    engine: EngineService, clip: Path, fields: dict[str, Any]
) -> None:
    files = {"file": ("clip.wav", clip.read_bytes())}
    answer = await engine.client.post("/v1/audio/transcriptions", data={"model": "asr", **fields}, files=files)
    assert "hotwords=Duet/MLX" in answer.json()["text"]


@pytest.mark.parametrize(
    ("response_format", "beginning"), [("text", "prompt=None"), ("srt", "1\n00:00:00,000 --> "), ("vtt", "WEBVTT")]
)
async def test_transcription_formats(engine: EngineService, clip: Path, response_format: str, beginning: str) -> None:
    data = {"model": "listener", "response_format": response_format, "timestamp_granularities[]": "segment", "x": "1"}
    files = {"file": ("clip.wav", clip.read_bytes())}
    answer = await engine.client.post("/v1/audio/transcriptions", data=data, files=files)
    assert answer.status_code == 200
    assert answer.text.startswith(beginning)
    assert answer.headers["X-Duet-Ignored"] == "x"


async def test_verbose_transcription(client: openai.AsyncOpenAI, clip: Path) -> None:
    answer = await client.audio.transcriptions.create(model="listener", file=clip, response_format="verbose_json")
    assert answer.segments is not None
    assert (answer.duration, answer.segments[0].end) == (0.5, 0.5)


async def test_models_say_what_they_are(engine: EngineService, client: openai.AsyncOpenAI) -> None:
    assert {model.id async for model in await client.models.list()} == {"talker", "tiny-embed", "listener"}
    shown = (await engine.client.get("/v1/models/listener")).json()
    assert shown["object"] == "model"
    assert shown["duet"]["roles"] == ["asr"]
    assert shown["duet"]["demonstration"] is False
    assert shown["duet"]["bytes_on_disk"] == 512
    assert shown["duet"]["problem"] is None


async def test_health_and_readiness_need_no_key(engine: EngineService) -> None:
    for path in ("/health", "/ready"):
        answer = await engine.client.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200


async def test_an_engine_that_can_serve_nothing_is_not_ready(tmp_path: Path) -> None:
    async with engine_service(tmp_path, tmp_path / "nothing") as engine:
        answer = await engine.client.get("/ready")
        assert answer.status_code == 503
        assert "engine.model_dirs" in answer.json()["error"]["message"]
        assert (await engine.client.get("/health")).status_code == 200


async def test_the_docs_work_offline_and_without_a_key(engine: EngineService) -> None:
    answer = await engine.client.get("/docs", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert "/v1/chat/completions" in answer.text
    assert "max_completion_tokens" in answer.text
    assert "integer 1..16" in answer.text
    assert "<script" not in answer.text
    assert "http" not in answer.text
    assert (await engine.client.get("/openapi.json", headers={"Authorization": ""})).status_code == 200
