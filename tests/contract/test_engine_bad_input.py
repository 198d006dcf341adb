"""What is wrong is refused with a 4xx that names it, in OpenAI's shape, and the engine goes on."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.fakes.engine_service import EngineService, chat_body, engine_service, model_folder

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineService]:
    home = tmp_path_factory.mktemp("engine")
    models = home / "models"
    model_folder(models, "talker")
    model_folder(models, "tiny-embed", capabilities=["embedding"])
    model_folder(models, "listener", model_type="qwen3_asr", capabilities=["asr"])
    async with engine_service(home, models, max_body_bytes=1 << 20) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def engine(service: EngineService) -> AsyncIterator[EngineService]:
    """The service, which must still answer after whatever the test sent it."""
    yield service
    assert (await service.chat("still here")).json()["choices"][0]["message"]["content"] == "still here!"


async def post(engine: EngineService, path: str, body: Any) -> httpx.Response:
    # Not httpx's own encoder: it refuses what a careless client sends (half a surrogate).
    content = json.dumps(body).encode()
    return await engine.client.post(path, content=content, headers={"Content-Type": "application/json"})


def user(content: Any) -> dict[str, Any]:
    return {"model": "talker", "messages": [{"role": "user", "content": content}]}


def image(url: str) -> dict[str, Any]:
    return user([{"type": "image_url", "image_url": {"url": url}}])


URL = "messages[0].content[0].image_url.url"
HELLO = "hello"
OBJECT = {"type": "json_object"}
NAMED = {"name": "a", "schema": {}}
WITHOUT = {"type": "json_schema", "json_schema": {"name": "a"}}
TWO_OUTPUTS = "structured_outputs.regex"
CHAT: list[tuple[str, Any, str | None]] = [
    ("unknown model", chat_body(HELLO, "nobody"), "model"),
    ("model of wrong type", chat_body(HELLO, 7), "model"),  # type: ignore[arg-type]
    ("no model", {"messages": [{"role": "user", "content": HELLO}]}, "model"),
    ("no messages", {"model": "talker"}, "messages"),
    ("empty messages", {"model": "talker", "messages": []}, "messages"),
    ("messages is a string", {"model": "talker", "messages": HELLO}, "messages"),
    ("message is a string", {"model": "talker", "messages": [HELLO]}, "messages[0]"),
    ("message is null", {"model": "talker", "messages": [None]}, "messages[0]"),
    ("unknown role", {"model": "talker", "messages": [{"role": "king", "content": HELLO}]}, "messages[0].role"),
    ("no role", {"model": "talker", "messages": [{"content": HELLO}]}, "messages[0].role"),
    ("no content", {"model": "talker", "messages": [{"role": "user"}]}, "messages[0]"),
    ("content is a number", user(7), "messages[0].content"),
    ("half a surrogate", user("\ud800"), "messages[0].content[0].text"),
    ("unknown part", user([{"type": "smell"}]), "messages[0].content[0].type"),
    ("input_audio part", user([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0].type"),
    ("text part without text", user([{"type": "text"}]), "messages[0].content[0]"),
    ("part is a string", user([HELLO]), "messages[0].content[0]"),
    ("tool message", {"model": "talker", "messages": [{"role": "tool", "content": HELLO}]}, "messages[0]"),
    ("temperature -1", chat_body(HELLO, temperature=-1), "temperature"),
    ("temperature as string", chat_body(HELLO, temperature="0.5"), "temperature"),
    ("temperature as bool", chat_body(HELLO, temperature=True), "temperature"),
    ("top_p 0", chat_body(HELLO, top_p=0), "top_p"),
    ("top_k -1", chat_body(HELLO, top_k=-1), "top_k"),
    ("top_k 10^30", chat_body(HELLO, top_k=10**30), "top_k"),
    ("top_k 2^31", chat_body(HELLO, top_k=1 << 31), "top_k"),
    ("min_p 2", chat_body(HELLO, min_p=2), "min_p"),
    ("seed 10^30", chat_body(HELLO, seed=10**30), "seed"),
    ("seed 1.5", chat_body(HELLO, seed=1.5), "seed"),
    ("max_tokens 0", chat_body(HELLO, max_tokens=0), "max_tokens"),
    ("max_tokens 10^12", chat_body(HELLO, max_tokens=10**12), "max_tokens"),
    ("max_tokens as string", chat_body(HELLO, max_tokens="5"), "max_tokens"),
    ("max_completion_tokens 0", chat_body(HELLO, max_completion_tokens=0), "max_completion_tokens"),
    ("two limits", chat_body(HELLO, max_tokens=1, max_completion_tokens=2), "max_completion_tokens"),
    ("n=0", chat_body(HELLO, n=0), "n"),
    ("n=1000", chat_body(HELLO, n=1000), "n"),
    ("empty stop", chat_body(HELLO, stop=[""]), "stop"),
    ("stop of wrong type", chat_body(HELLO, stop=[7]), "stop[0]"),
    ("17 stops", chat_body(HELLO, stop=[str(i) for i in range(17)]), "stop"),
    ("presence_penalty 3", chat_body(HELLO, presence_penalty=3), "presence_penalty"),
    ("frequency_penalty -3", chat_body(HELLO, frequency_penalty=-3), "frequency_penalty"),
    ("repetition_penalty 0", chat_body(HELLO, repetition_penalty=0), "repetition_penalty"),
    ("logit_bias of a word", chat_body(HELLO, logit_bias={"word": 1}), "logit_bias"),
    ("logit_bias of a huge token", chat_body(HELLO, logit_bias={"9" * 40: 1}), "logit_bias"),
    ("logit_bias 101", chat_body(HELLO, logit_bias={"1": 101}), "logit_bias"),
    ("top_logprobs alone", chat_body(HELLO, top_logprobs=2), "top_logprobs"),
    ("top_logprobs 21", chat_body(HELLO, logprobs=True, top_logprobs=21), "top_logprobs"),
    ("stream_options without stream", chat_body(HELLO, stream_options={"include_usage": True}), "stream_options"),
    ("stream of wrong type", chat_body(HELLO, stream="yes"), "stream"),
    ("tools", chat_body(HELLO, tools=[{"type": "function"}]), "tools"),
    ("tool_choice required", chat_body(HELLO, tool_choice="required"), "tool_choice"),
    ("functions", chat_body(HELLO, functions=[{"name": "f"}]), "functions"),
    ("unknown format", chat_body(HELLO, response_format={"type": "yaml"}), "response_format.type"),
    ("schema missing", chat_body(HELLO, response_format={"type": "json_schema"}), "response_format"),
    ("schema in text", chat_body(HELLO, response_format={"type": "text", "json_schema": NAMED}), "response_format"),
    ("schema without a schema", chat_body(HELLO, response_format=WITHOUT), "response_format.json_schema.schema"),
    ("two forms", chat_body(HELLO, guided_regex="a", guided_choice=["a"]), "guided_choice"),
    ("two forms of two kinds", chat_body(HELLO, response_format=OBJECT, guided_json={}), "guided_json"),
    ("two structured outputs", chat_body(HELLO, structured_outputs={"regex": "a", "json": {}}), TWO_OUTPUTS),
    (
        "structural tag",
        chat_body(HELLO, structured_outputs={"structural_tag": "x"}),
        "structured_outputs.structural_tag",
    ),
    ("guided_json is no JSON", chat_body(HELLO, guided_json="{"), "guided_json"),
    ("guided_json is a list", chat_body(HELLO, guided_json="[]"), "guided_json"),
    ("no choice", chat_body(HELLO, guided_choice=[]), "guided_choice"),
    ("a choice that is a number", chat_body(HELLO, guided_choice=[7]), "guided_choice[0]"),
    ("an endless expression", chat_body(HELLO, guided_regex="a" * 70_000), "guided_regex"),
    ("half a surrogate in a choice", chat_body(HELLO, guided_choice=["\ud800"]), "guided_choice"),
    ("half a surrogate in a grammar", chat_body(HELLO, guided_grammar="\ud800"), "guided_grammar"),
    ("audio out", chat_body(HELLO, modalities=["text", "audio"]), "modalities"),
    ("template of its own", chat_body(HELLO, chat_template_kwargs={"chat_template": "x"}), "chat_template_kwargs"),
    ("template number of 200 bits", chat_body(HELLO, chat_template_kwargs={"x": 1 << 200}), "chat_template_kwargs"),
    ("over-long prompt", chat_body("refuse"), "messages"),
    ("over-long prompt, streamed", chat_body("refuse", stream=True), "messages"),
    ("local file", image("file:///etc/passwd"), URL),
    ("server path", image("/etc/passwd"), URL),
    ("loopback image", image("http://127.0.0.1:1/x.png"), URL),
    ("loopback image by name", image("http://localhost/x.png"), URL),
    ("loopback image as one number", image("http://2130706433/x.png"), URL),
    ("IPv6 loopback image", image("http://[::1]/x.png"), URL),
    ("IPv4 in IPv6 loopback image", image("http://[::ffff:127.0.0.1]/x.png"), URL),
    ("private image", image("http://10.0.0.1/x.png"), URL),
    ("metadata image", image("http://169.254.169.254/latest/meta-data"), URL),
    ("image of a broken address", image("http://[::1/x.png"), URL),
    ("image address with a password", image("http://a:b@127.0.0.1/x.png"), URL),
    ("bad base64", image("data:image/png;base64,@@@"), URL),
    ("empty image", image("data:image/png;base64,"), URL),
    ("data URL without a comma", image("data:image/png;base64"), URL),
    ("no picture", image("data:image/png;base64,aGVsbG8="), URL),
    ("HEIC", image("data:image/heic;base64,AAAAGGZ0eXBoZWljAAAAAG1pZjFoZWlj"), URL),
    ("picture of 4 Gpx", image("data:image/gif;base64,R0lGODlh/////4AAAAAAAP///ywAAAAAAQABAAACAkQBADs="), URL),
    ("image from another service's port", image("http://example.org:22/x.png"), URL),
    ("chat with an embedding model's name of wrong case", chat_body(HELLO, "nobody/at/all"), "model"),
]


@pytest.mark.parametrize(("body", "param"), [case[1:] for case in CHAT], ids=[case[0] for case in CHAT])
async def test_bad_chat_requests(engine: EngineService, body: dict[str, Any], param: str | None) -> None:
    answer = await post(engine, "/v1/chat/completions", body)
    error = answer.json()["error"]
    assert 400 <= answer.status_code < 500, error
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["code"]


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"model":NaN'])
async def test_a_body_that_is_no_json_object(engine: EngineService, content: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        answer = await engine.client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


EMBEDDINGS: list[tuple[str, dict[str, Any], str]] = [
    ("no input", {}, "input"),
    ("empty string", {"input": ""}, "input"),
    ("empty list", {"input": []}, "input"),
    ("empty item", {"input": ["a", ""]}, "input"),
    ("empty token list", {"input": [[]]}, "input"),
    ("mixed", {"input": ["a", 1]}, "input"),
    ("number", {"input": 7}, "input"),
    ("negative token", {"input": [-1]}, "input"),
    ("token of 200 bits", {"input": [1 << 200]}, "input"),
    ("booleans", {"input": [True]}, "input"),
    ("half a surrogate", {"input": "\ud800"}, "input"),
    ("2049 inputs", {"input": ["a"] * 2049}, "input"),
    ("dimensions 0", {"input": "a", "dimensions": 0}, "dimensions"),
    ("unknown format", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ("unknown model", {"input": "a", "model": "nobody"}, "model"),
]


@pytest.mark.parametrize(("body", "param"), [case[1:] for case in EMBEDDINGS], ids=[case[0] for case in EMBEDDINGS])
async def test_bad_embedding_requests(engine: EngineService, body: dict[str, Any], param: str) -> None:
    answer = await post(engine, "/v1/embeddings", {"model": "tiny-embed", **body})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["param"] == param


FORMS: list[tuple[str, bytes | None, dict[str, str], str]] = [
    ("a text named .wav", b"this is no sound at all", {}, "file"),
    ("zero bytes", b"", {}, "file"),
    ("no file", None, {}, "file"),
    ("unknown model", b"RIFF", {"model": "nobody"}, "model"),
    ("unknown format", b"RIFF", {"response_format": "pdf"}, "response_format"),
    ("temperature 2", b"RIFF", {"temperature": "2"}, "temperature"),
    ("stream", b"RIFF", {"stream": "true"}, "stream"),
    ("word times", b"RIFF", {"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
]


@pytest.mark.parametrize(("file", "form", "param"), [case[1:] for case in FORMS], ids=[case[0] for case in FORMS])
async def test_bad_transcription_requests(
    engine: EngineService, file: bytes | None, form: dict[str, str], param: str
) -> None:
    files = {"file": ("clip.wav", file)} if file is not None else {"other": ("x", b"x")}
    answer = await engine.client.post("/v1/audio/transcriptions", data={"model": "listener", **form}, files=files)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Authorization": ""}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"Authorization": "Basic dGVzdC1rZXk="}, 401, "invalid_api_key"),
        ({"Host": "evil.example"}, 403, "forbidden_host"),
    ],
)
async def test_who_may_not_call(engine: EngineService, headers: dict[str, str], status: int, code: str) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/talker")):
        answer = await engine.client.request(method, path, headers=headers, content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/v1/models/nobody", 404)],
)
async def test_unknown_routes_answer_in_the_same_shape(
    engine: EngineService, method: str, path: str, status: int
) -> None:
    answer = await engine.client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


SAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "talker", "stream": False, "stream_options": {"include_usage": False}, "max_tokens": 3, "temperature": 0.5,
        "top_p": 0.5, "top_k": 3, "seed": 1, "logit_bias": {"1": 1.0}, "n": 1, "stop": ["x"], "store": True, "logprobs": True,
        "top_logprobs": 1, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "chat_template_kwargs": {"a": 1}, "tools": [], "tool_choice": "auto", "modalities": ["text"], "zz": 1,
        "messages": [
            {"role": "system", "content": "a"}, {"role": "user", "name": "b", "content": [{"type": "text", "text": "c"}]}
        ],
    },
    "/v1/completions": {
        "model": "talker", "prompt": ["a", "b"], "max_tokens": 3, "echo": True, "n": 1, "best_of": 1, "suffix": "",
        "stream": False, "guided_regex": "a", "structured_outputs": {"regex": None}, "priority": "batch",
    },
    "/v1/embeddings": {"model": "tiny-embed", "input": ["a", "b"], "encoding_format": "float", "dimensions": 4, "user": "x"},
}  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), 1e300, "", " ", "x", "0", "\ud800", "\0",
    "x" * 70_000, [], {}, [[]], [None], [{}], [0], ["x"], [1.5], [[1], "x"], {"": None}, {"type": "text"}, {"type": None},
    {"url": {}}, {"json": "{"}, {"grammar": " "}, [{"role": "user", "content": None}], [{"role": "tool"}], {"a": [{"b": [[[]]]}]},
]  # fmt: skip


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a body that can have another value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [spot for key in keys for spot in _spots(value[key])]


@pytest.mark.parametrize("path", SAMPLES)
async def test_no_value_in_any_place_is_a_fault_of_ours(engine: EngineService, path: str) -> None:
    """Two or three values of a good body are replaced or removed, 150 times."""
    chance = random.Random(path)
    for _ in range(150):
        body = copy.deepcopy(SAMPLES[path])
        for _ in range(chance.randint(1, 3)):
            holder, key = chance.choice(_spots(body) or [(body, "model")])
            if chance.random() < 0.1 and key in holder and isinstance(holder, dict):
                del holder[key]
            else:
                holder[key] = copy.deepcopy(chance.choice(ODD))
        answer = await post(engine, path, body)
        assert answer.status_code < 500, (body, answer.text)
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"], body


async def test_a_body_over_the_limit(engine: EngineService) -> None:
    answer = await engine.chat("x" * (1 << 20))
    assert answer.status_code == 413


async def test_an_unknown_model_is_answered_with_those_there_are(engine: EngineService) -> None:
    error = (await engine.chat("hello", "nobody")).json()["error"]
    assert error["code"] == "model_not_found"
    assert "talker" in error["message"]
    assert "tiny-embed" in error["message"]
