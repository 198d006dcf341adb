"""One more recogniser is one more entry of the list: models, health, routes, headers and reports follow from its abilities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duet.wire import Segment, Transcript
from speech.recognisers.port import Abilities, Options, Pcm
from speech.recognisers.stitching import stitched
from speech.splitter import SAMPLE_RATE
from tests.fakes.router_service import RouterService, clip, router_service


class German:
    """Hears German, and honours keywords."""

    name, unready = "german_asr", "the German model is not there"
    abilities = Abilities(frozenset({"de"}), frozenset({"keywords"}), max_seconds=60.0)

    def __init__(self) -> None:
        self.is_ready = True
        self.asked: list[Options] = []

    async def ready(self) -> bool:
        return self.is_ready

    async def transcribe(self, pcm: Pcm, options: Options) -> Transcript:
        self.asked.append(options)
        seconds = len(pcm) / SAMPLE_RATE
        return stitched([Segment(0.0, seconds, "guten Tag", language="de")], seconds)

    async def close(self) -> None:
        self.is_ready = False


@pytest.fixture
def german() -> German:
    return German()


@pytest.fixture
async def router(german: German, tmp_path: Path) -> AsyncIterator[RouterService]:
    async with router_service(tmp_path, more=[german]) as found:
        yield found


async def test_it_is_listed_and_its_health_is_told(router: RouterService, german: German) -> None:
    models = {model["id"]: model["duet"] for model in (await router.client.get("/v1/models")).json()["data"]}
    assert list(models) == ["auto", "whisper-1", "sensevoice", "qwen3-asr", "german-asr", "duet-tiny-asr"]
    assert (models["german-asr"]["backend"], models["german-asr"]["ready"]) == ("german_asr", True)
    german.is_ready = False
    assert (await router.client.get("/ready")).json()["german_asr"] is False


async def test_it_takes_what_it_is_able_to_do(router: RouterService, german: German) -> None:
    answer = await router.send(clip("en"), language="de", keywords="Tag", temperature="0.5")
    assert answer.json()["text"] == "guten Tag"
    assert answer.headers["x-duet-route"] == "german_asr"
    # The engine stands before it in the list, is able too, and is out of reach.
    assert answer.headers["x-duet-route-reason"] == "keywords, but the engine has no speech model ready"
    assert answer.headers["x-duet-ignored"] == "temperature"
    assert german.asked == [Options("de", None, ("Tag",), 0.5)]


async def test_it_can_be_pinned_and_is_replaced_openly(router: RouterService, german: German) -> None:
    pinned = await router.send(clip("en"), model="german-asr")
    assert (pinned.json()["text"], pinned.headers["x-duet-route-reason"]) == ("guten Tag", "the model was asked for")
    german.is_ready = False
    answer = await router.send(clip("en"), model="german-asr")
    assert answer.headers["x-duet-route"] == "sensevoice"
    assert answer.headers["x-duet-route-reason"] == "the model was asked for, but the German model is not there"
