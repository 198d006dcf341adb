"""`python -m engine` as users start it, with the embedded models, seen through OpenAI's own client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import openai
import pytest
from pydantic import BaseModel, Field

import models

pytestmark = pytest.mark.e2e

ASK = "Who are you?"


@dataclass(frozen=True)
class Gateway:
    process: subprocess.Popen[str]
    url: str
    key: str

    def workers(self) -> list[int]:
        """Process ids of its children."""
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = (line.split() for line in listing.splitlines())
        return [int(pid) for pid, parent in pairs if int(parent) == self.process.pid]


def start(home: Path, **settings: str) -> Gateway:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DUET_")},
        "DUET_HOME": str(home),
        "DUET_EMBEDDED": "true",
        "DUET_ENGINE__HUB": "false",
        "DUET_ENGINE__PORT": "0",
        "DUET_ENGINE__WARM_SPARE": "false",  # on every machine the workers are those of models
        **settings,
    }
    log = (home / "engine.log").open("w")
    process = subprocess.Popen([sys.executable, "-P", "-m", "engine"], stderr=log, env=environment, text=True)
    log.close()
    deadline = time.monotonic() + 60
    while not (found := re.search(r"action=listening .*port=(\d+)", (home / "engine.log").read_text())):
        assert process.poll() is None, (home / "engine.log").read_text()
        assert time.monotonic() < deadline, "the engine does not listen"
        time.sleep(0.05)
    url = f"http://127.0.0.1:{found[1]}"
    while not answers(url):
        assert time.monotonic() < deadline, "the engine does not answer"
        time.sleep(0.05)
    return Gateway(process, url, (home / "api_key").read_text().strip())


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False  # the port is taken but not yet served, or not in time


def stop(gateway: Gateway) -> int:
    gateway.process.terminate()
    return gateway.process.wait(60)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = start(tmp_path_factory.mktemp("home"))
    yield running
    workers = running.workers()
    assert stop(running) == 0
    assert not any(is_alive(pid) for pid in workers)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=60) as client:
        yield client


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def says(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def endless() -> dict[str, Any]:
    """Parameters of an answer that does not end by itself: its end-of-sequence tokens are out of reach."""
    config = json.loads((models.EMBEDDED / "duet-tiny-chat" / "config.json").read_text())
    ids = config["eos_token_id"]
    return {"logit_bias": {str(token): -100 for token in (ids if isinstance(ids, list) else [ids])}}


def test_a_chat_is_the_same_streamed_and_not(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="chat", messages=says(ASK), temperature=0)
    stream = client.chat.completions.create(
        model="duet-tiny-chat", messages=says(ASK), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert whole.model == "duet-tiny-chat"


def test_a_completion_of_the_rendered_chat_is_the_chats_answer(client: openai.OpenAI) -> None:
    """As text and as token ids, whole and streamed, and it restores what the chat had computed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.EMBEDDED / "duet-tiny-chat")
    question = f"{ASK} " * 40
    text = tokenizer.apply_chat_template(says(question), tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    chat = client.chat.completions.create(model="chat", messages=says(question), temperature=0, max_tokens=24)
    whole = client.completions.create(model="chat", prompt=[text, text], temperature=0, max_tokens=24)
    tokens = client.completions.create(model="chat", prompt=ids, temperature=0, max_tokens=24)
    stream = client.completions.create(model="chat", prompt=ids, temperature=0, max_tokens=24, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in stream)
    answers = [*(choice.text for choice in whole.choices), tokens.choices[0].text, streamed]
    assert answers == [chat.choices[0].message.content] * 4
    assert tokens.usage is not None
    assert tokens.usage.prompt_tokens == len(ids)
    assert tokens.usage.prompt_tokens_details is not None
    assert (tokens.usage.prompt_tokens_details.cached_tokens or 0) > 100


def test_a_completion_echoes_a_token_prompt_as_its_text(client: openai.OpenAI) -> None:
    from transformers import AutoTokenizer

    prompt = "The meeting begins at nine."
    ids = AutoTokenizer.from_pretrained(models.EMBEDDED / "duet-tiny-chat").encode(prompt, add_special_tokens=False)
    echoed, plain = (
        client.completions.create(model="chat", prompt=ids, temperature=0, max_tokens=8, echo=echo)
        for echo in (True, False)
    )
    assert echoed.choices[0].text == prompt + plain.choices[0].text
    scored = client.completions.create(model="chat", prompt=ids, temperature=0, max_tokens=8, logprobs=3, stop=["\n\n"])
    found = scored.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top is not None
        assert logprob == top[token] == max(top.values()), "greedy"


def test_a_seed_fixes_the_answer_and_n_gives_different_ones(client: openai.OpenAI) -> None:
    def draw(n: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="chat", messages=says("hello"), temperature=1.5, seed=7, n=n, max_tokens=16, **endless()
        )
        return [choice.message.content for choice in answer.choices]

    first = draw(3)
    assert len(set(first)) == 3
    assert draw(3) == first
    assert draw(1) == first[:1]


def test_embeddings_of_both_formats_agree(client: openai.OpenAI) -> None:
    texts = ["we deploy the release on Friday", "the release goes out on Friday", "the cat sleeps"]
    binary = client.embeddings.create(model="embedding", input=texts)
    floats = client.embeddings.create(model="duet-tiny-embed", input=texts, encoding_format="float")
    vectors = np.array([item.embedding for item in floats.data])
    assert np.allclose(vectors, [item.embedding for item in binary.data], atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    short = client.embeddings.create(model="embedding", input=texts[0], dimensions=16, encoding_format="float")
    cut = vectors[0, :16] / np.linalg.norm(vectors[0, :16])
    assert np.allclose(short.data[0].embedding, cut, atol=1e-5)
    assert floats.usage.prompt_tokens > 0


def test_the_models_are_shown_as_demonstrations(gateway: Gateway, client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"duet-tiny-chat", "duet-tiny-embed", "duet-tiny-vl"}
    answer = httpx.get(f"{gateway.url}/v1/models/duet-tiny-chat", headers={"Authorization": f"Bearer {gateway.key}"})
    assert answer.json()["duet"]["demonstration"] is True
    chat = client.chat.completions.with_raw_response.create(model="chat", messages=says(ASK))
    vector = client.embeddings.with_raw_response.create(model="embedding", input="a")
    assert [raw.headers["X-Duet-Demonstration"] for raw in (chat, vector)] == ["true", "true"]


def test_a_model_without_speech_refuses_a_transcription(client: openai.OpenAI, tmp_path: Path) -> None:
    from tests.sounds import pcm, tone, wav

    clip = tmp_path / "clip.wav"
    clip.write_bytes(wav(pcm(tone(1.0))))
    with pytest.raises(openai.NotFoundError) as refused:
        client.audio.transcriptions.create(model="asr", file=clip)
    assert refused.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.audio.transcriptions.create(model="duet-tiny-chat", file=clip)
    assert wrong.value.param == "model"


def test_an_over_long_prompt_is_refused_before_the_stream_begins(client: openai.OpenAI) -> None:
    # The model is loaded first: the status waits only three seconds for a load.
    client.chat.completions.create(model="chat", messages=says(ASK))
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=says("word " * 5000), stream=True)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


def test_an_image_for_a_model_that_cannot_see_is_refused(client: openai.OpenAI) -> None:
    url = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
    content: Any = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": content}])
    assert refused.value.param == "messages"


class Drink(BaseModel):
    kind: Literal["tea", "coffee", "水"]
    cups: Annotated[int, Field(ge=1, le=12)]
    notes: Annotated[list[Literal["hot", "cold"]], Field(max_length=2)]


def test_an_answer_is_parsed_into_the_class_that_was_asked_for(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="chat", messages=says(ASK), temperature=2, n=2, response_format=Drink, max_tokens=400
    )
    assert all(isinstance(choice.message.parsed, Drink) for choice in parsed.choices)
    assert [choice.finish_reason for choice in parsed.choices] == ["stop"] * 2
    with client.chat.completions.stream(
        model="chat", messages=says(ASK), temperature=2, response_format=Drink, max_tokens=400
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Drink)


def test_vllm_s_names_for_forms_work_beside_each_other(client: openai.OpenAI) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"guided_choice": ["yes", "不"]}, "yes|不"),
        ({"guided_grammar": 'root ::= "a" ("b" | "c")'}, "ab|ac"),
        ({"guided_json": {"enum": [7, "x"]}}, '7|"x"'),
        ({"structured_outputs": {"regex": "[xy]{4}"}}, "[xy]{4}"),
        ({"structured_outputs": {"json": '{"type": "boolean"}'}}, "true|false"),
    ]

    def answer(fields: dict[str, Any]) -> str | None:
        made = client.chat.completions.create(
            model="chat", messages=says(ASK), temperature=2, max_tokens=50, extra_body=fields
        )
        return made.choices[0].message.content

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(answer, [fields for fields, _ in asked]))
    assert [text for text, (_, form) in zip(answers, asked, strict=True) if not re.fullmatch(form, text or "")] == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_cannot_be_followed_is_refused_by_its_name(client: openai.OpenAI, stream: bool) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"guided_regex": "("}, "guided_regex"),
        ({"structured_outputs": {"grammar": "?"}}, "structured_outputs.grammar"),
    ]
    for fields, param in refused:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="chat", messages=says(ASK), stream=stream, extra_body=fields)
        assert caught.value.param == param


def test_killing_a_worker_ends_its_stream_with_an_error_and_the_next_request_works(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    client.embeddings.create(model="embedding", input="beside")
    client.chat.completions.create(model="chat", messages=says(ASK))
    before = set(gateway.workers())
    # Found before the stream begins, which does end: where its context does.
    chat_worker = worker_of(gateway, "duet-tiny-chat")
    assert chat_worker in before
    stream = client.chat.completions.create(model="chat", messages=says("hello"), stream=True, **endless())
    with pytest.raises(openai.APIError) as lost:
        for count, _ in enumerate(stream):
            if count == 3:
                os.kill(chat_worker, signal.SIGKILL)
    assert lost.value.code == "worker_lost"
    assert client.chat.completions.create(model="chat", messages=says(ASK)).choices[0].message.content
    after = set(gateway.workers())
    assert chat_worker not in after
    assert before - {chat_worker} <= after, "the embedding worker lives on"


def worker_of(gateway: Gateway, model: str) -> int:
    """The process id of a model's worker, as operators see it."""
    headers = {"Authorization": f"Bearer {gateway.key}"}
    answer = httpx.get(f"{gateway.url}/v1/admin/models/{model}/stats", headers=headers, trust_env=False)
    return int(answer.json()["pid"])


def test_no_worker_outlives_a_killed_gateway(tmp_path: Path) -> None:
    gateway = start(tmp_path)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, timeout=60) as client:
        client.chat.completions.create(model="chat", messages=says(ASK))
    workers = gateway.workers()
    assert workers
    gateway.process.kill()
    gateway.process.wait(10)
    deadline = time.monotonic() + 30  # each writes its KV to SSD first
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its gateway"
        time.sleep(0.05)


def test_a_taken_port_and_a_wrong_setting_are_said_plainly(gateway: Gateway, tmp_path: Path) -> None:
    port = gateway.url.rpartition(":")[2]
    for settings, code, said in (
        ({"DUET_ENGINE__PORT": port}, 1, "cannot listen"),
        ({"DUET_ENGINE__PORT": "many"}, 78, "DUET_ENGINE__PORT"),
    ):
        environment = {**os.environ, "DUET_HOME": str(tmp_path), **settings}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "engine"], env=environment, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == code
        assert said in ended.stderr
