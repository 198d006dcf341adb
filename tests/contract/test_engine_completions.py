"""`POST /v1/completions` as OpenAI's own client reads it. In a token prompt for the fake worker, token i is character i."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.fakes.engine_service import KEY, EngineService, engine_service, model_folder

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [ord(char) for char in "hello"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineService]:
    home = tmp_path_factory.mktemp("engine")
    models = home / "models"
    model_folder(models, "talker")
    async with engine_service(home, models) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(engine: EngineService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def refusal(engine: EngineService, **body: Any) -> tuple[int, str | None, str]:
    """Status, parameter and message of a request that is refused."""
    content = json.dumps({"model": "talker", "prompt": "hello", **body})
    headers = {"Content-Type": "application/json"}
    answer = await engine.client.post("/v1/completions", content=content, headers=headers)
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


async def test_a_text_is_continued(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="talker", prompt="hello")
    assert (answer.object, answer.model) == ("text_completion", "talker")
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "hello!", "stop", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("hello", ["hello!"]),
        (["hello", "bye"], ["hello!", "bye!"]),
        (HELLO, ["hello!"]),
        ([HELLO, [ord("x")]], ["hello!", "x!"]),
    ],
)
async def test_a_prompt_is_a_text_or_token_ids_or_several(
    client: openai.AsyncOpenAI, prompt: Any, texts: list[str]
) -> None:
    answer = await client.completions.create(model="talker", prompt=prompt)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))


async def test_choices_of_several_prompts_are_indexed_prompt_by_prompt(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="talker", prompt=["hello", "bye"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "hello!"), (1, "hello!"), (2, "bye!"), (3, "bye!"),
    ]  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 14, "each prompt counts once"
    assert answer.usage.completion_tokens == 2 * 2 + 2 * 1


async def test_a_stream_has_the_same_text_and_the_usage_when_asked(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="talker", prompt=["good morning", "bye"], n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts, reasons = [""] * 4, [""] * 4
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == ["good morning!"] * 2 + ["bye!"] * 2
    assert reasons == ["stop"] * 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (14, 10)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"text_completion"}


async def test_a_stream_ends_with_done_and_a_failure_in_it_with_an_error(engine: EngineService) -> None:
    async def frames(prompt: str) -> list[str]:
        answer = await engine.client.post(
            "/v1/completions", json={"model": "talker", "prompt": prompt, "stream": True, "max_tokens": 100}
        )
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]

    whole = await frames("hello")
    assert whole[-1] == "[DONE]"
    assert not any("usage" in frame for frame in whole)
    assert json.loads((await frames("break"))[-1])["error"]["code"] == "internal_error"


async def test_an_answer_has_16_tokens_unless_asked_otherwise(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="talker", prompt="forever")
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")
    longer = await client.completions.create(model="talker", prompt="forever", max_tokens=20)
    assert longer.usage is not None
    assert longer.usage.completion_tokens == 20


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hello", HELLO])
async def test_echo_begins_with_the_prompt(client: openai.AsyncOpenAI, prompt: Any, stream: bool) -> None:
    answer: Any = await client.completions.create(model="talker", prompt=prompt, echo=True, n=2, stream=stream)
    if stream:
        texts = ["", ""]
        async for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        texts = [choice.text for choice in answer.choices]
        assert answer.usage.completion_tokens == 4, "the prompt's tokens are not generated ones"
    assert texts == ["hellohello!"] * 2


async def test_logprobs_have_the_older_shape(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="talker", prompt="hello", logprobs=2)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens == ["hel", "lo"]
    assert found.token_logprobs == [-0.5, -0.5]
    assert found.top_logprobs == [{"hel": -0.5}, {"lo": -0.5}]
    assert found.text_offset == [0, 3]
    chosen = (await client.completions.create(model="talker", prompt="hello", logprobs=0)).choices[0].logprobs
    assert chosen is not None
    assert (chosen.tokens, chosen.top_logprobs) == (["hel", "lo"], [{"hel": -0.5}, {"lo": -0.5}])


async def test_streamed_logprobs_are_one_token_each(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(model="talker", prompt="hello", logprobs=1, stream=True)
    found = [chunk.choices[0].logprobs async for chunk in stream if chunk.choices[0].logprobs]
    assert [(one.tokens, one.token_logprobs, one.text_offset) for one in found] == [
        (["hel"], [-0.5], [0]),
        (["lo"], [-0.5], [3]),
    ]


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"suffix": "the end"}, "suffix", "not supported"),
        ({"best_of": 3}, "best_of", "equals n"),
        ({"best_of": 1, "n": 2}, "best_of", "equals n"),
        ({"echo": True, "logprobs": 1}, "logprobs", "echo"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "not empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": ["a", 1]}, "prompt", "neither"),
        ({"prompt": {"text": "a"}}, "prompt", "string"),
        ({"prompt": "\ud800"}, "prompt", "Unicode"),
        ({"prompt": ["a"] * 65}, "prompt", "64"),
        ({"prompt": None}, "prompt", "is missing"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": ["a"] * 64, "n": 16}, "n", "1024; a request takes 128"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"stop": [""]}, "stop", "empty"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_its_name(
    engine: EngineService, body: dict[str, Any], param: str, word: str
) -> None:
    status, named, message = await refusal(engine, **body)
    assert (status, named) == (400, param)
    assert word in message


async def test_a_prompt_is_needed(engine: EngineService) -> None:
    answer = await engine.client.post("/v1/completions", json={"model": "talker"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_what_asks_for_nothing_is_taken(engine: EngineService) -> None:
    nothing = {"suffix": None, "best_of": 2, "n": 2, "logprobs": None, "echo": None, "stop": None, "stream": None}
    answer = await engine.client.post("/v1/completions", json={"model": "talker", "prompt": "hello", **nothing})
    assert answer.status_code == 200
    assert "x-duet-ignored" not in answer.headers


async def test_fields_without_effect_are_named(engine: EngineService) -> None:
    answer = await engine.client.post(
        "/v1/completions", json={"model": "talker", "prompt": "hello", "user": "someone", "min_tokens": 3}
    )
    assert answer.headers["x-duet-ignored"] == "user, min_tokens"


async def test_priority_and_deadline_hold_here_too(engine: EngineService) -> None:
    answer = await engine.client.post(
        "/v1/completions",
        json={"model": "talker", "prompt": "how"},
        headers={"X-Duet-Priority": "batch", "X-Duet-Deadline": "30"},
    )
    assert answer.json()["choices"][0]["text"].startswith("priority=batch left=29")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", [0, 1, 3])
async def test_one_wrong_prompt_of_several_is_one_error_before_any_text(
    engine: EngineService, stream: bool, place: int
) -> None:
    prompts = ["fine"] * 4
    prompts[place] = "refuse"
    answer = await engine.client.post("/v1/completions", json={"model": "talker", "prompt": prompts, "stream": stream})
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("context_length_exceeded", "prompt")


async def test_one_failing_choice_fails_the_call(engine: EngineService) -> None:
    status, param, _ = await refusal(engine, prompt=["hello", "refuse"])
    assert (status, param) == (400, "prompt")
