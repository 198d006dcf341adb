"""The router's transcriptions over real HTTP with the embedded SenseVoice: OpenAI's client, every format, bad input."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import pytest_asyncio
import srt
from openai.types.audio import TranscriptionVerbose

from speech.decoding.trusted import samples as decode
from speech.level import NO_SPEECH
from tests import sounds
from tests.fakes.router_service import DEMO, KEY, PATH, RouterService, clip, router_service

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def router(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RouterService]:
    """No engine: everything is SenseVoice's, and what is not is degraded."""
    async with router_service(tmp_path_factory.mktemp("home"), max_upload_bytes=1 << 20) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(router: RouterService) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx.AsyncClient(trust_env=False)
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key=KEY, http_client=http, max_retries=0) as found:
        yield found


def heard(text: str) -> str:
    return "".join(text.lower().split())


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def text(router: RouterService) -> str:
    """What the recogniser makes of the Chinese clip."""
    said: str = (await router.send(clip("zh"))).json()["text"]
    assert "数据库" in said
    return said


async def test_openai_client_json(client: openai.AsyncOpenAI, text: str) -> None:
    answer = await client.audio.transcriptions.create(model="whisper-1", file=("clip.flac", clip("zh")))
    assert answer.text == text


async def test_openai_client_text(client: openai.AsyncOpenAI, text: str) -> None:
    answer = await client.audio.transcriptions.create(
        model="auto", file=("clip.flac", clip("zh")), response_format="text"
    )
    assert answer.strip() == text


async def test_openai_client_verbose_json_with_words(client: openai.AsyncOpenAI, text: str) -> None:
    answer = await client.audio.transcriptions.create(
        model="whisper-1", file=("clip.flac", clip("zh")), response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )  # fmt: skip
    assert (answer.text, answer.language) == (text, "zh")
    assert answer.segments
    assert answer.words
    assert 0 <= answer.segments[0].start < answer.segments[-1].end <= answer.duration
    assert heard("".join(word.word for word in answer.words)) == heard(text)
    assert all(word.start <= word.end for word in answer.words)


async def test_openai_client_words_alone_come_without_segments(client: openai.AsyncOpenAI) -> None:
    answer = await client.audio.transcriptions.create(
        model="whisper-1", file=("clip.flac", clip("zh")), response_format="verbose_json",
        timestamp_granularities=["word"],
    )  # fmt: skip
    assert answer.words
    assert answer.segments is None


async def test_openai_client_srt_and_vtt(client: openai.AsyncOpenAI, text: str) -> None:
    file = ("clip.flac", clip("zh"))
    subtitles = await client.audio.transcriptions.create(model="auto", file=file, response_format="srt")
    assert heard("".join(cue.content for cue in srt.parse(subtitles))) == heard(text)
    vtt = await client.audio.transcriptions.create(model="auto", file=file, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:")


async def test_headers_tell_the_route(router: RouterService) -> None:
    answer = await router.send(clip("en"))
    assert answer.headers["x-duet-route"] == "sensevoice"
    assert answer.headers["x-duet-route-reason"] == "short clip"
    assert float(answer.headers["x-duet-audio-seconds"]) == pytest.approx(2.9, abs=0.1)
    assert answer.headers["x-duet-demonstration"] == "true"
    assert "x-duet-degraded" not in answer.headers
    assert "x-duet-ignored" not in answer.headers


@pytest.mark.parametrize("kind", sorted(sounds.FORMATS))
async def test_every_container_gives_the_same_speech(
    router: RouterService, tmp_path: Path, text: str, kind: str
) -> None:
    samples = decode(DEMO / "clip_zh.flac", max_seconds=60)
    rate = sounds.FORMATS[kind][2]
    count = round(len(samples) * rate / sounds.RATE)
    stretched = np.interp(np.arange(count) * sounds.RATE / rate, np.arange(len(samples)), samples)
    path = sounds.write(tmp_path / "clip", stretched.astype(np.float32), kind=kind)
    answer = await router.send(path.read_bytes(), name="clip.bin", language="zh")
    assert answer.status_code == 200, answer.text
    assert float(answer.headers["x-duet-audio-seconds"]) == pytest.approx(len(samples) / sounds.RATE, abs=0.2)
    same = set(heard(answer.json()["text"])) & set(heard(text))
    assert len(same) >= 0.6 * len(set(heard(text)))  # a lossy codec may cost the tiny model a character


async def test_silence_gives_no_text(router: RouterService) -> None:
    silence = sounds.wav(sounds.pcm(np.zeros(5 * sounds.RATE, np.float32)))
    for name in ("json", "verbose_json"):
        answer = await router.send(silence, response_format=name)
        assert answer.json()["text"] == ""
    assert (await router.send(silence, response_format="srt")).text == ""
    typed = TranscriptionVerbose.model_validate((await router.send(silence, response_format="verbose_json")).json())
    assert (typed.language, typed.segments) == ("und", [])


async def test_cues_end_with_the_recording(router: RouterService) -> None:
    """A clip that is cut within a word has text that no cue of 0.7 s may show for longer than the clip."""
    samples = decode(DEMO / "clip_en.flac", max_seconds=60)[: int(0.62 * 16_000)]
    answer = await router.send(sounds.wav(sounds.pcm(samples)), response_format="srt")
    assert all(cue.end.total_seconds() <= 0.62 for cue in srt.parse(answer.text))


async def test_unknown_fields_are_reported_and_the_rest_is_done(router: RouterService, text: str) -> None:
    answer = await router.send(clip("zh"), colour="blue", seed="1", temperature="0.5")
    assert answer.json()["text"] == text
    assert answer.headers["x-duet-ignored"] == "colour, seed, temperature"


@pytest.mark.parametrize(
    ("fields", "reason", "ignored"),
    [
        ({"keywords_": ["数据库"]}, "keywords", "keywords"),
        ({"hotwords": "数据库"}, "keywords", "keywords"),
        ({"prompt": "性能"}, "prompt", "prompt"),
        ({"quality": "high"}, "quality=high", None),
        ({"language": "de"}, "language de", "language"),
        ({"model": "qwen3-asr"}, "the model was asked for", None),
    ],
)
async def test_without_an_engine_sensevoice_answers_and_says_so(
    router: RouterService, text: str, fields: dict[str, Any], reason: str, ignored: str | None
) -> None:
    answer = await router.send(clip("zh"), **fields)
    assert answer.json()["text"] == text
    assert answer.headers["x-duet-route"] == "sensevoice"
    assert answer.headers["x-duet-route-reason"] == f"{reason}, but the engine has no speech model ready"
    assert answer.headers["x-duet-degraded"] == "true"
    assert answer.headers.get("x-duet-ignored") == ignored


@pytest.mark.parametrize("name", ["a tone", "noise", "a short noise"])
async def test_sound_without_words_is_said_to_be_there(router: RouterService, name: str) -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, 24_000 if name == "a short noise" else 64_000).astype(np.float32)
    samples = sounds.tone(3.0) if name == "a tone" else noise
    answer = await router.send(sounds.wav(sounds.pcm(samples)), response_format="verbose_json")
    assert (answer.status_code, answer.json()["text"]) == (200, "")
    assert answer.headers["x-duet-warning"] == NO_SPEECH
    assert answer.json()["warnings"] == [NO_SPEECH]


async def test_silence_needs_no_warning(router: RouterService) -> None:
    answer = await router.send(sounds.wav(bytes(64_000)), response_format="verbose_json")
    assert (answer.json()["text"], "x-duet-warning" in answer.headers) == ("", False)


async def test_quiet_speech_is_heard_from_its_beginning(router: RouterService, text: str) -> None:
    samples = decode(DEMO / "clip_zh.flac", max_seconds=60)
    loud = (await router.send(clip("zh"), response_format="verbose_json")).json()["segments"][0]
    for db in (-24, -36):
        quiet = sounds.wav(sounds.pcm(samples * np.float32(10 ** (db / 20))))
        body = (await router.send(quiet, response_format="verbose_json")).json()
        assert body["segments"][0]["start"] == pytest.approx(loud["start"], abs=0.05), db
        assert len(body["text"]) > 0.7 * len(text), db


async def test_each_channel_is_recognised_for_itself(router: RouterService, text: str) -> None:
    left, right = (decode(DEMO / f"clip_{name}.flac", max_seconds=60) for name in ("zh", "en"))
    both = np.zeros((len(left) + len(right) + 16_000, 2), np.float32)
    both[: len(left), 0] = left
    both[-len(right) :, 1] = right
    data = sounds.wav(np.round(both * 32767).astype("<i2").tobytes(), channels=2)
    answer = await router.send(
        data, channels="each", response_format="verbose_json", timestamp_granularities_=["word", "segment"]
    )
    body = answer.json()
    assert [segment["channel"] for segment in body["segments"]] == [1, 2]
    assert body["segments"][0]["text"] == text
    assert body["segments"][0]["end"] <= body["segments"][1]["start"]
    assert {word["channel"] for word in body["words"]} == {1, 2}
    assert body["duration"] == pytest.approx(len(both) / 16_000, abs=0.01)
    cues = list(srt.parse((await router.send(data, channels="each", response_format="srt")).text))
    assert {cue.content.split(":")[0] for cue in cues} == {"Channel 1", "Channel 2"}
    mixed = (await router.send(data, response_format="verbose_json")).json()
    assert "channel" not in mixed["segments"][0]


async def test_a_channel_without_words_is_named(router: RouterService) -> None:
    speech = decode(DEMO / "clip_en.flac", max_seconds=60)
    both = np.stack([speech, np.random.default_rng(1).normal(0, 0.05, len(speech)).astype(np.float32)], axis=1)
    data = sounds.wav(np.round(both * 32767).astype("<i2").tobytes(), channels=2)
    answer = await router.send(data, channels="each")
    assert answer.headers["x-duet-warning"] == f"channel 2: {NO_SPEECH}"


async def test_more_channels_than_are_recognised_singly_are_refused(router: RouterService) -> None:
    data = sounds.wav(bytes(2 * 9 * 16_000), channels=9)
    answer = await router.send(data, channels="each")
    assert answer.status_code == 400
    assert "at most 8 channels" in answer.json()["error"]["message"]
    assert (await router.send(data, channels="left")).json()["error"]["param"] == "channels"


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_Hans", "cmn", "Chinese", "中文", "auto", ""])
async def test_a_language_is_taken_in_every_form(router: RouterService, text: str, language: str) -> None:
    answer = await router.send(clip("zh"), language=language, response_format="verbose_json")
    assert (answer.json()["text"], answer.json()["language"]) == (text, "zh")
    assert answer.headers["x-duet-route"] == "sensevoice"
    assert "x-duet-ignored" not in answer.headers


SPEECH = sounds.wav(sounds.pcm(sounds.tone(1.0)))


@pytest.mark.parametrize(
    ("data", "fields", "status", "param"),
    [
        (b"this is a text and no audio at all. " * 100, {}, 400, "file"),
        (b"", {}, 400, "file"),
        (b"RIFF", {}, 400, "file"),
        (sounds.wav(sounds.pcm(sounds.tone(1.0)), rate=1), {}, 400, "file"),
        (sounds.wav(b""), {}, 400, "file"),
        (sounds.wav(sounds.pcm(sounds.tone(1.0)), data_bytes=10_000_000), {"strict": "true"}, 400, "file"),
        (b"#EXTM3U\nfile:///etc/passwd\n" * 20, {}, 400, "file"),
        (b"\0" * ((1 << 20) + 1), {}, 413, "file"),
        (b"\0" * (3 << 20), {}, 413, "file"),
        (SPEECH, {"response_format": "docx"}, 400, "response_format"),
        (SPEECH, {"response_format": "diarized_json"}, 400, "response_format"),
        (SPEECH, {"language": "klingon"}, 400, "language"),
        (SPEECH, {"language": "xx"}, 400, "language"),
        (SPEECH, {"language": "qq"}, 400, "language"),
        (SPEECH, {"model": "gpt-99"}, 404, "model"),
        (SPEECH, {"temperature": "-1"}, 400, "temperature"),
        (SPEECH, {"temperature": "hot"}, 400, "temperature"),
        (SPEECH, {"temperature": "nan"}, 400, "temperature"),
        (SPEECH, {"quality": "best"}, 400, "quality"),
        (SPEECH, {"prompt": "x" * 8001}, 400, "prompt"),
        (SPEECH, {"keywords_": ["x" * 65]}, 400, "keywords"),
        (SPEECH, {"stream": "true"}, 400, "stream"),
        (SPEECH, {"include_": ["logprobs"]}, 400, "include[]"),
        (SPEECH, {"chunking_strategy": '{"type": "server_vad"}'}, 400, "chunking_strategy"),
        (SPEECH, {"known_speaker_names_": ["Ann"]}, 400, "known_speaker_names[]"),
        (SPEECH, {"timestamp_granularities_": ["word"]}, 400, "timestamp_granularities"),
        (SPEECH, {"timestamp_granularities_": ["page"], "response_format": "verbose_json"}, 400, "timestamp_granularities"),
    ],
)  # fmt: skip
async def test_bad_input_is_refused_by_name_and_leaves_nothing(
    router: RouterService, data: bytes, fields: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await router.send(data, name="clip.wav", **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert router.spooled() == []
    assert (await router.client.get("/ready")).status_code == 200


async def test_a_missing_file_is_named(router: RouterService) -> None:
    for request in (
        {"data": {"model": "auto"}},
        {"files": {"other": ("clip.wav", SPEECH)}},
        {"data": {"file": "no upload"}},
        {"json": {"file": "x"}},
    ):
        answer = await router.client.post(PATH, **request)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file"), (request, answer.text)


async def test_keywords_that_are_an_upload_are_refused(router: RouterService) -> None:
    files = {"file": ("clip.wav", SPEECH), "keywords": ("words.txt", b"a\nb")}
    answer = await router.client.post(PATH, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "keywords")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Authorization": ""}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"Host": "evil.example"}, 403, "forbidden_host"),
    ],
)
async def test_strangers_are_refused(router: RouterService, headers: dict[str, str], status: int, code: str) -> None:
    answer = await router.client.post(PATH, files={"file": ("clip.wav", SPEECH)}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_models_health_ready_and_docs(router: RouterService) -> None:
    listed = (await router.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    found = {model["id"]: model for model in listed["data"]}
    assert set(found) == {"auto", "whisper-1", "sensevoice", "qwen3-asr", "duet-tiny-asr"}
    assert found["duet-tiny-asr"]["duet"]["demonstration"]
    assert [name for name, model in found.items() if not model["duet"]["ready"]] == ["qwen3-asr"]
    assert (await router.client.get("/v1/models/auto")).json() == found["auto"]
    assert (await router.client.get("/v1/models/nothing")).json()["error"]["param"] == "model"
    async with httpx.AsyncClient(base_url=router.url, trust_env=False) as stranger:
        assert (await stranger.get("/health")).json() == {"status": "ok"}
        assert (await stranger.get("/ready")).json()["sensevoice"] is True
        assert "/v1/audio/transcriptions" in (await stranger.get("/docs")).text
        assert (await stranger.get("/v1/models")).status_code == 401


async def test_no_word_of_a_transcript_is_logged(
    router: RouterService, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await router.send(clip("zh"), prompt="geheim", keywords_=["verborgen"])
    lines = [record for record in caplog.records if getattr(record, "action", "") == "transcribed"]
    assert [(line.route, line.degraded) for line in lines] == [("sensevoice", True)]  # type: ignore[attr-defined]
    logged = json.dumps([{**vars(record), "said": record.getMessage()} for record in caplog.records], default=str)
    for secret in (text, "geheim", "verborgen", KEY):
        assert secret not in logged
        assert json.dumps(secret)[1:-1] not in logged
