"""Any local Hugging Face folder loads: random checkpoints of every kind behind one gateway."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from tests import checkpoints
from tests.e2e.test_engine_openai import Gateway, start, stop
from tests.sounds import pcm, tone, wav

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    near, far = tmp_path_factory.mktemp("near"), tmp_path_factory.mktemp("far")
    for kind in ("vision", "hybrid"):
        checkpoints.write(kind, near / kind)
    checkpoints.write("embedding", near / "my-embedding")
    checkpoints.write("qwen3_asr", far / "owner" / "my-asr")
    home = tmp_path_factory.mktemp("home")
    running = start(home, DUET_EMBEDDED="false", DUET_ENGINE__MODEL_DIRS=f"{near}{os.pathsep}{far}")
    yield running
    stop(running)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=120) as client:
        yield client


def picture(seed: int) -> str:
    """A data: URL of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def see(client: openai.OpenAI, *pictures: str, text: str = "what is it?") -> Any:
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    content.append({"type": "text", "text": text})
    return client.chat.completions.create(
        model="vision", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=8, logprobs=True
    )


def test_the_folders_are_the_models(client: openai.OpenAI) -> None:
    """The folder `vision` has the name of a role, which stays the role's: its id says where it lies."""
    ids = {model.id.rpartition("/")[2]: model.id for model in client.models.list()}
    assert ids.keys() == {"vision", "hybrid", "my-embedding", "my-asr"}
    assert {name for name, model in ids.items() if name != model} == {"vision"}


def test_images_reach_a_vision_model(client: openai.OpenAI) -> None:
    """Two pictures of one size give different log-probabilities, the same picture gives the same."""
    first, again, other = (
        [item.logprob for item in see(client, picture(seed)).choices[0].logprobs.content] for seed in (1, 1, 2)
    )
    assert first == pytest.approx(again, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-4)


def test_requests_with_and_without_images_run_together(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda urls: see(client, *urls), [(), (picture(1),), (picture(2), picture(3))]))
    prompts = [answer.usage.prompt_tokens for answer in answers]
    assert prompts[0] < prompts[1] < prompts[2]
    assert all(answer.usage.completion_tokens > 0 for answer in answers)


def test_a_picture_that_is_none_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        see(client, "data:image/png;base64," + base64.b64encode(b"no picture").decode())
    assert refused.value.param == "messages[0].content[0].image_url.url"


def test_a_hybrid_model_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="hybrid", messages=[{"role": "user", "content": "hello"}], max_tokens=4, temperature=0
    )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 4


def test_an_embedding_folder_embeds_text_and_token_ids(client: openai.OpenAI) -> None:
    texts = client.embeddings.create(model="embedding", input=["one", "another one"])
    tokens = client.embeddings.create(model="my-embedding", input=[[1, 2, 3], [4]])
    norms = [np.linalg.norm(item.embedding) for answer in (texts, tokens) for item in answer.data]
    assert norms == pytest.approx([1.0] * 4, abs=1e-4)
    assert tokens.usage.prompt_tokens == 4


def test_a_speech_folder_transcribes_what_the_client_sends(client: openai.OpenAI, tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(wav(pcm(tone(1.5))))
    answer = client.audio.transcriptions.create(
        model="asr", file=clip, response_format="verbose_json", prompt="Duet", extra_body={"hotwords": "MLX"}
    )
    assert answer.duration == pytest.approx(1.5, abs=0.01)


def test_a_chat_for_an_embedding_model_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="my-embedding", messages=[{"role": "user", "content": "hello"}])
    assert refused.value.param == "model"
