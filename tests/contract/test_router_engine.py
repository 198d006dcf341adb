"""The router and the engine over HTTP: what goes there, how pieces come together, and every way in which it can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse, Response

from asr_router import transcribing
from speech.recognisers import engine as engine_recogniser
from tests.fakes.engine_http import FakeEngine, failure, fake_engine, transcription
from tests.fakes.router_service import KEY, NOWHERE, RouterService, clip, long_clip, router_service


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's state is waited for and believed for longer than any test takes: the machine's pace decides nothing."""
    monkeypatch.setattr(engine_recogniser, "ASK_SECONDS", 60.0)
    monkeypatch.setattr(engine_recogniser, "HEALTH_SECONDS", 600.0)


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with fake_engine() as found:
        yield found


@pytest.fixture
async def router(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[RouterService]:
    async with router_service(tmp_path, engine.url) as found:
        yield found


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_long_audio_goes_in_pieces_whose_times_and_order_are_the_recordings(
    router: RouterService, engine: FakeEngine
) -> None:
    answer = await router.send(long_clip(70), response_format="verbose_json")
    assert answer.headers["x-duet-route"] == "qwen3_asr"
    assert answer.headers["x-duet-route-reason"] == "longer than 30 s"
    assert "x-duet-demonstration" not in answer.headers
    body = answer.json()
    assert body["duration"] == pytest.approx(70, abs=0.01)
    times = [time for segment in body["segments"] for time in (segment["start"], segment["end"])]
    assert times == sorted(times)
    assert 0 <= times[0] < 5
    assert 60 < times[-1] <= 70
    assert len(engine.heard) == len(body["segments"]) > 2
    assert all(0.5 < piece.seconds <= 30 for piece in engine.heard)
    assert all(piece.authorization == f"Bearer {KEY}" for piece in engine.heard)
    # Nothing is forced on the model that the caller did not ask for.
    assert engine.heard[0].fields == {"model": ["asr"], "response_format": ["verbose_json"], "temperature": ["0.0"]}
    assert router.spooled() == []


async def test_what_the_caller_asked_reaches_the_engine(router: RouterService, engine: FakeEngine) -> None:
    answer = await router.send(
        clip("zh"), language="zh-CN", prompt="context", keywords_=["向量数据库", "Qwen"], temperature="0.25"
    )
    assert (answer.json()["text"], answer.headers["x-duet-route-reason"]) == ("piece1", "keywords")
    fields = engine.heard[0].fields
    assert (fields["language"], fields["prompt"], fields["temperature"]) == (["zh"], ["context"], ["0.25"])
    assert fields["keywords[]"] == ["向量数据库", "Qwen"]
    assert "x-duet-ignored" not in answer.headers


async def test_a_short_clip_never_waits_for_the_engine(router: RouterService, engine: FakeEngine) -> None:
    answer = await router.send(clip("en"))
    assert answer.headers["x-duet-route"] == "sensevoice"
    assert engine.asked_for_model == 0


async def test_pieces_run_side_by_side_within_bounds(router: RouterService, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    asking = asyncio.create_task(router.send(long_clip(70)))
    await until(lambda: engine.at_once == 4)
    engine.hold.set()
    assert (await asking).status_code == 200
    assert engine.most_at_once == 4


@pytest.mark.parametrize(
    "bad",
    [
        failure(503, "the worker was lost"),
        failure(500, "an unexpected error"),
        failure(404, "there is no such model"),
        failure(429, "busy"),
        PlainTextResponse("<html>proxy</html>"),
        PlainTextResponse("<html>proxy</html>", 502),
        Response(b'{"text": 1, "segments": [{"start": "x"}]}', media_type="application/json"),
        Response(b"[]", media_type="application/json"),
    ],
    ids=["503", "500", "404", "429", "no json", "502", "wrong shape", "a list"],
)
async def test_an_engine_that_fails_midway_leaves_no_half_transcript(
    router: RouterService, engine: FakeEngine, bad: Response
) -> None:
    engine.answers = [transcription("first", 1.0), bad]
    answer = await router.send(long_clip(40), response_format="verbose_json")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-duet-route"] == "sensevoice"
    assert answer.headers["x-duet-route-reason"] == "longer than 30 s, but the engine failed"
    assert answer.headers["x-duet-degraded"] == "true"
    body = answer.json()
    assert "first" not in body["text"]
    assert "we need to test the new" in body["text"]
    assert body["segments"][-1]["end"] > 35


@pytest.mark.parametrize(("status", "param"), [(400, "language"), (422, None)])
async def test_what_the_engine_refuses_is_the_callers_to_know(
    router: RouterService, engine: FakeEngine, status: int, param: str | None
) -> None:
    engine.answers = [failure(status, "no such language", param=param)]
    answer = await router.send(clip("en"), language="de")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"]) == (400, param, "no such language")


async def test_an_engine_without_segments_still_gives_times(router: RouterService, engine: FakeEngine) -> None:
    engine.answers = [Response(b'{"text": "whole", "segments": []}', media_type="application/json")]
    body = (await router.send(clip("en"), quality="high", response_format="verbose_json")).json()
    assert body["text"] == "whole"
    assert 0 <= body["segments"][0]["start"] < body["segments"][0]["end"] <= body["duration"]


@pytest.mark.parametrize("state", [None, "absent", "failed"])
async def test_a_model_that_is_not_there_is_not_waited_for(
    router: RouterService, engine: FakeEngine, state: str | None
) -> None:
    engine.state = state
    answer = await router.send(clip("en"), quality="high")
    assert answer.headers["x-duet-route"] == "sensevoice"
    assert answer.headers["x-duet-route-reason"] == "quality=high, but the engine has no speech model ready"
    assert engine.heard == []


async def test_the_engines_state_is_asked_once_for_many_requests(router: RouterService, engine: FakeEngine) -> None:
    for _ in range(3):
        assert (await router.send(clip("en"), quality="high")).headers["x-duet-route"] == "qwen3_asr"
    assert engine.asked_for_model == 1


async def test_words_that_the_engine_cannot_time_are_reported(router: RouterService) -> None:
    answer = await router.send(
        clip("en"), quality="high", response_format="verbose_json", timestamp_granularities_=["word"]
    )
    assert answer.headers["x-duet-ignored"] == "timestamp_granularities"


async def test_a_silent_recording_sends_nothing(router: RouterService, engine: FakeEngine) -> None:
    from tests import sounds

    answer = await router.send(sounds.wav(b"\0" * 2 * 40 * sounds.RATE))
    assert (answer.json()["text"], answer.headers["x-duet-route"]) == ("", "qwen3_asr")
    assert engine.heard == []


async def test_a_client_that_leaves_ends_the_work_in_the_engine_too(router: RouterService, engine: FakeEngine) -> None:
    engine.hold = asyncio.Event()
    asking = asyncio.create_task(router.send(long_clip(40)))
    await until(lambda: engine.at_once == 4)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: engine.left_early == 4)
    await until(lambda: router.spooled() == [])
    assert len(engine.heard) == 4
    assert (await router.send(clip("en"))).status_code == 200


async def test_a_full_house_answers_429_with_the_time_to_come_back(
    router: RouterService, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcribing, "WAITING", 0)
    engine.hold = asyncio.Event()
    asking = [asyncio.create_task(router.send(clip("en"), quality="high")) for _ in range(transcribing.AT_ONCE)]
    await until(lambda: engine.at_once == transcribing.AT_ONCE)
    answer = await router.send(clip("en"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "server_busy")
    assert int(answer.headers["retry-after"]) > 0
    engine.hold.set()
    assert [(await task).status_code for task in asking] == [200] * transcribing.AT_ONCE
    assert (await router.send(clip("en"))).status_code == 200


async def test_an_engine_that_is_too_slow_is_given_up(engine: FakeEngine, tmp_path: Path) -> None:
    engine.hold = asyncio.Event()
    async with router_service(tmp_path, engine.url, engine_timeout_seconds=0.3) as router:
        answer = await router.send(clip("en"), quality="high")
        assert answer.headers["x-duet-route-reason"] == "quality=high, but the engine failed"
        assert answer.json()["text"]


async def test_without_sensevoice_the_engine_answers_for_it(engine: FakeEngine, tmp_path: Path) -> None:
    async with router_service(tmp_path, engine.url, embedded=False) as router:
        answer = await router.send(clip("en"))
        assert answer.json()["text"] == "piece1"
        assert answer.headers["x-duet-route-reason"] == "short clip, but no SenseVoice model is installed"
        assert answer.headers["x-duet-degraded"] == "true"
        engine.answers = [failure(503, "the worker was lost")]
        assert (await router.send(clip("en"))).status_code == 503


async def test_without_any_recogniser_the_cause_and_the_fix_are_told(tmp_path: Path) -> None:
    async with router_service(tmp_path, NOWHERE, embedded=False) as router:
        for answer in (await router.send(clip("en")), await router.client.get("/ready")):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "unavailable")
            assert "duet up --embedded" in error["message"]
            assert "router.sensevoice_dir" in error["message"]
        assert (await router.client.get("/health")).status_code == 200


async def test_something_else_on_the_engines_port_is_no_engine(tmp_path: Path) -> None:
    async def hello(scope: object, receive: object, send: object) -> None:
        await PlainTextResponse("hello")(scope, receive, send)  # type: ignore[arg-type]

    from tests.fakes.engine_http import served

    async with served(hello, lifespan="off") as url, router_service(tmp_path, url) as router:
        answer = await router.send(clip("en"), quality="high")
        assert answer.headers["x-duet-route-reason"] == "quality=high, but the engine has no speech model ready"


async def test_the_engine_is_found_again_after_it_came_up(engine: FakeEngine, router: RouterService) -> None:
    engine.answers = [failure(503, "the worker was lost")]
    assert (await router.send(clip("en"), quality="high")).headers["x-duet-route"] == "sensevoice"
    assert (await router.send(clip("en"), quality="high")).headers["x-duet-route"] == "qwen3_asr"
    assert engine.asked_for_model == 2


async def test_httpx_errors_are_the_engines(engine: FakeEngine, router: RouterService) -> None:
    """The engine goes away between its health and the request."""
    backend = router.transcriber.recognisers["qwen3_asr"]
    assert await backend.ready()
    http: httpx.AsyncClient = backend._client._http  # type: ignore[attr-defined]
    http.base_url = httpx.URL(NOWHERE)
    answer = await router.send(clip("en"), quality="high")
    assert answer.headers["x-duet-route-reason"] == "quality=high, but the engine failed"
