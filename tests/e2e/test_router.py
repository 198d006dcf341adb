"""The router with its real child process: a killed recogniser, broken models, crowds, real recordings."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import models
from tests.fakes.router_service import NOWHERE, RouterService, clip, long_clip, router_service

FOLDER = os.environ.get("DUET_TEST_AUDIO", "")
SUFFIXES = {".wav", ".mp3", ".flac", ".opus", ".m4a", ".webm"}
RECORDINGS = sorted(path for path in Path(FOLDER).iterdir() if path.suffix in SUFFIXES) if FOLDER else []


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[RouterService]:
    async with router_service(tmp_path) as found:
        yield found


async def test_a_killed_recogniser_costs_nothing_but_its_restart(router: RouterService) -> None:
    said = (await router.send(clip("zh"))).json()["text"]
    first = router.recogniser_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    answer = await router.send(clip("zh"))
    assert (answer.status_code, answer.json()["text"]) == (200, said)
    assert router.recogniser_pid not in (None, first)


async def test_a_recogniser_killed_at_work_is_tried_again(router: RouterService) -> None:
    await router.send(clip("zh"))
    first = router.recogniser_pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)  # it takes the request and does not answer
    asking = asyncio.create_task(router.send(clip("zh")))
    async with asyncio.timeout(20):
        while not router.recogniser_waited_for:
            await asyncio.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    assert (await asking).json()["text"]
    assert router.recogniser_pid != first


async def test_a_crowd_gets_what_each_would_get_alone(router: RouterService) -> None:
    alone = {language: (await router.send(clip(language))).json()["text"] for language in ("en", "zh")}
    answers = await asyncio.gather(*(router.send(clip(language)) for language in ("en", "zh") * 6))
    assert [answer.json()["text"] for answer in answers] == [alone["en"], alone["zh"]] * 6


async def test_long_audio_without_an_engine_is_whole(router: RouterService) -> None:
    answer = await router.send(long_clip(70), response_format="verbose_json")
    segments = answer.json()["segments"]
    assert answer.headers["x-duet-degraded"] == "true"
    assert sum("to test the" in segment["text"] for segment in segments) >= 15
    assert segments[-1]["end"] > 60


async def test_a_model_that_is_put_in_place_later_is_used_without_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "models" / "sensevoice"
    async with router_service(tmp_path / "home", NOWHERE, embedded=False) as router:
        folder.mkdir(parents=True)
        assert (await router.client.get("/ready")).status_code == 503
        for path in (models.EMBEDDED / "duet-tiny-asr").iterdir():
            shutil.copy(path, folder)
        assert (await router.client.get("/ready")).status_code == 200
        answer = await router.send(clip("en"))
        assert answer.json()["text"]
        assert "x-duet-demonstration" not in answer.headers


async def test_files_that_are_no_model_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    (tmp_path / "tokens.txt").write_text("a 0\n")
    async with router_service(tmp_path / "home", NOWHERE, embedded=False, sensevoice_dir=tmp_path) as router:
        for _ in range(2):
            answer = await router.send(clip("en"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert "SenseVoice model" in answer.json()["error"]["message"]
        assert (await router.client.get("/health")).status_code == 200


@pytest.mark.recordings
@pytest.mark.skipif(not FOLDER, reason="DUET_TEST_AUDIO names no folder of recordings")
async def test_real_recordings_go_through_the_router(router: RouterService) -> None:
    assert RECORDINGS
    for path in RECORDINGS:
        answer = await router.send(path.read_bytes(), name=path.name, response_format="verbose_json")
        assert answer.status_code == 200, (path.name, answer.text)
        body = answer.json()
        assert body["duration"] > 0.5, path.name
        last = 0.0
        for segment in body["segments"]:
            assert last - 0.001 <= segment["start"] < segment["end"] <= body["duration"] + 0.001, path.name
            assert segment["text"], path.name
            last = segment["end"]
        for name in ("srt", "vtt", "text", "json"):
            shown = await router.send(path.read_bytes(), name=path.name, response_format=name)
            assert shown.status_code == 200, (path.name, name)
