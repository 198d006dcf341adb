"""`duet bench cer` against an engine over real HTTP: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.accuracy import backends, cer
from benchmarks.accuracy.manifest import Manifest, Utterance
from duet.settings import Settings, load_settings
from tests.fakes.engine_http import failure, fake_engine, served

SECOND = np.zeros(16_000, np.float32)


@dataclass
class Reviewing:
    """A review model that corrects 密等 where it is asked to, if the glossary has the term."""

    window_segments: int = 2
    answer: str | None = None
    asked: list[str] = field(default_factory=list)

    async def model(self, _: Request) -> Response:
        limits = {"window_segments": self.window_segments, "context_segments": 1, "glossary_terms": 9}
        return JSONResponse({"id": "reviewer", "duet": {"state": "loaded", "review": limits}})

    async def chat(self, request: Request) -> Response:
        prompt = (await request.json())["messages"][-1]["content"]
        self.asked.append(prompt)
        glossary, transcript = prompt.split("<transcript>")
        edits = [
            {"id": line[1:6], "edits": [{"from": "密等", "to": "幂等"}]}
            for line in transcript.splitlines()
            if line.startswith("[s") and "密等" in line and "幂等" in glossary
        ]
        said = self.answer if self.answer is not None else json.dumps({"segments": edits}, ensure_ascii=False)
        return JSONResponse({"choices": [{"message": {"content": said}}]})


@asynccontextmanager
async def reviewing(model: Reviewing) -> AsyncIterator[str]:
    routes = [
        Route("/v1/models/{name:path}", model.model),
        Route("/v1/chat/completions", model.chat, methods=["POST"]),
    ]
    async with served(Starlette(routes=routes), lifespan="off") as url:
        yield url


def settings_for(url: str, home: Path) -> Settings:
    return load_settings({"DUET_HOME": str(home), "DUET_ENGINE__PORT": url.rsplit(":", 1)[1]})


def utterance(name: str, audio: str, text: str) -> Utterance:
    return Utterance(name, Path(audio), text, "zh", ("幂等",) if "幂等" in text else (), ("幂等",))


MEETING = [
    ("a", "m.flac", "接口要幂等"),
    ("b", "m.flac", "今天下雨"),
    ("c", "m.flac", "必须幂等"),
    ("d", "x.wav", "再见"),
]
HEARD = ["接口要密等", "今天下雨", "必须密等", "再见"]


async def runs_of(url: str, home: Path, arms: list[str]) -> tuple[list[cer.Run], cer.Review]:
    review = cer.Review(settings_for(url, home), None)
    said = Manifest((), tuple(utterance(*row) for row in MEETING), (), ("蒙古包",))
    await review.open()
    try:
        return await cer.run(review, said, HEARD, arms, lambda what, done: None), review
    finally:
        await review.close()


async def test_utterances_of_one_recording_are_reviewed_in_the_pipeline_s_windows(tmp_path: Path) -> None:
    model = Reviewing()
    async with reviewing(model) as url:
        runs, _ = await runs_of(url, tmp_path, ["none", "lm", "lm+rule"])
    found = {(run.arm, run.glossary): run for run in runs}
    assert found["lm", "true"].texts == ("接口要幂等", "今天下雨", "必须幂等", "再见")
    assert found["lm", "absent"].texts == tuple(HEARD)
    assert found["lm", "true"].groups["all"].cer.rate == 0.0
    assert found["lm", "true"].groups["all"].better == 2
    assert len(model.asked) == 6  # three windows, with two glossaries, asked once for both arms
    first = next(prompt for prompt in model.asked if "[s0001] 接口要密等" in prompt and "幂等" in prompt)
    assert "[s0002] 今天下雨" in first
    assert "[context, do not edit] 必须密等" in first
    alone = next(prompt for prompt in model.asked if "再见" in prompt)
    assert "[s0001] 再见" in alone
    assert "context" not in alone


async def test_an_unreadable_answer_is_no_edit_and_is_counted(tmp_path: Path) -> None:
    async with reviewing(Reviewing(answer="I cannot do that.")) as url:
        runs, review = await runs_of(url, tmp_path, ["lm"])
    assert runs[0].texts == tuple(HEARD)
    assert review.unreadable == 6


async def test_without_an_engine_the_review_says_so_and_the_rule_remains(tmp_path: Path) -> None:
    runs, review = await runs_of("http://127.0.0.1:9", tmp_path, ["none", "rule", "lm"])
    assert "out of reach" in review.problem
    assert [(run.arm, run.glossary) for run in runs] == [("none", "true"), ("rule", "true"), ("rule", "absent")]


def engine_backend(url: str, home: Path) -> backends.Backend:
    return backends.BACKENDS["engine"](settings_for(url, home), "asr", "auto")


async def test_the_engine_is_sent_the_clip_and_named_by_its_model(tmp_path: Path) -> None:
    async with fake_engine() as engine:
        ears = engine_backend(engine.url, tmp_path)
        identity = await ears.identify()
        heard = await ears.transcribe(utterance("a", "a.wav", "x"), SECOND)
        await ears.close()
    assert '"asr"' in identity
    assert heard.text == "piece1"
    assert (engine.heard[0].seconds, engine.heard[0].fields["model"]) == (1.0, ["asr"])
    assert engine.heard[0].authorization.startswith("Bearer ")


async def test_a_refusal_names_the_utterance_and_an_absent_service_is_asked_after(tmp_path: Path) -> None:
    async with fake_engine() as engine:
        engine.answers.append(failure(413, "too long"))
        ears = engine_backend(engine.url, tmp_path)
        with pytest.raises(backends.BackendError, match=r"the-id: HTTP 413.*too long"):
            await ears.transcribe(utterance("the-id", "a.wav", "x"), SECOND)
        await ears.close()
    ears = engine_backend("http://127.0.0.1:9", tmp_path)
    with pytest.raises(backends.BackendError, match="is it running"):
        await ears.identify()
    await ears.close()


async def test_the_router_s_answers_tell_which_backend_was_used(tmp_path: Path) -> None:
    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "auto", "duet": {"backend": "auto", "ready": True}}]})

    async def transcribed(request: Request) -> Response:
        async with request.form() as form:
            fields: dict[str, Any] = dict(form.items())
        headers = {"X-Duet-Route": "sensevoice", "X-Duet-Degraded": "true"}
        return JSONResponse({"text": f" {fields['quality']} "}, headers=headers)

    routes = [Route("/v1/models", models), Route("/v1/audio/transcriptions", transcribed, methods=["POST"])]
    async with served(Starlette(routes=routes), lifespan="off") as url:
        settings = load_settings({"DUET_HOME": str(tmp_path), "DUET_ROUTER__PORT": url.rsplit(":", 1)[1]})
        ears = backends.BACKENDS["router"](settings, None, "high")
        identity, heard = await asyncio.gather(ears.identify(), ears.transcribe(utterance("a", "a.wav", "x"), SECOND))
        await ears.close()
    assert '"ready": true' in identity
    assert heard == backends.Heard("high", "sensevoice", degraded=True)
