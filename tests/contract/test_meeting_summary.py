"""A summary is asked for in parts, a few at once; each is kept, bounded, and lost only alone."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from duet.settings import RouterSettings, Settings
from duet.wire import Segment
from pipelines.clients import Reviewer
from pipelines.meeting.artifacts import Artifacts
from pipelines.meeting.context import Context
from pipelines.meeting.job import JobFolder
from pipelines.meeting.review.stage import Review, ReviewedSegment
from pipelines.meeting.summarize import MAX_ITEMS, MAX_OVERVIEW, PARTS_AT_ONCE, Summary, summarize
from tests.fakes.engine_http import FakeEngine, fake_engine
from tests.fakes.meetings import asked

PARTS = 10
SEGMENTS = tuple(
    ReviewedSegment(
        f"s{i:04d}", Segment(2.0 * i, 2.0 * i + 1.5, f"we ship part {i}", speaker="S1"), f"we ship part {i}"
    )
    for i in range(PARTS)
)


def reply(body: dict[str, Any]) -> str:
    system, user = (message["content"] for message in body["messages"])
    if system.startswith("You are given the overviews"):
        return json.dumps({"overview": f"all of {len(user.splitlines()) - 2}"})
    (name,) = re.findall(r"\[(s\d+)\]", user)
    item = {"kind": "decision", "text": f"ship {name}", "segment_ids": [name], "quote": f"we ship part {int(name[1:])}"}
    return json.dumps({"overview": f"Part {name}.", "items": [item]})


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with fake_engine() as found:
        found.reply = reply
        yield found


@pytest.fixture
def context(engine: FakeEngine, tmp_path: Path) -> Context:
    settings = Settings(home=tmp_path, router=RouterSettings(engine_url=engine.url))
    folder = JobFolder(tmp_path, "one")
    (folder.path / "artifacts").mkdir(parents=True)
    return Context(settings, folder, asked("one"), Artifacts(folder.path / "artifacts"))


async def summary(context: Context, *, overview: bool = True) -> Summary:
    reviewer = Reviewer("m", summary_characters=16, overview=overview)
    context.artifacts.write("review", Review(reviewer, SEGMENTS))
    key = await summarize(context, {"review": "review"})
    found: Summary = context.artifacts.read(key, Summary)
    return found


def again(context: Context) -> Context:
    """As after a restart, with what the stage itself made gone."""
    for path in (context.folder.path / "artifacts").glob("summarize-summary-*"):
        path.unlink()
    return Context(context.settings, context.folder, context.request, context.artifacts)


async def test_parts_are_made_a_few_at_once_in_order_and_merged(context: Context, engine: FakeEngine) -> None:
    found = await summary(context)
    assert [item.segment_ids for item in found.items] == [(item.id,) for item in SEGMENTS]
    assert all(item.verified for item in found.items)
    assert found.overview.startswith("all of ")
    assert 1 < engine.most_at_once <= PARTS_AT_ONCE
    assert context.folder.progress().done == 1.0


async def test_nothing_of_it_is_kept_by_the_engine_and_no_answer_is_endless(
    context: Context, engine: FakeEngine
) -> None:
    await summary(context)
    for body in engine.chats:
        assert (body["store"], body["stop_on_repetition"]) == (False, True)
        schema = json.dumps(body["response_format"]["json_schema"]["schema"])
        assert schema.count('"type": "string"') == schema.count('"maxLength"')
        assert schema.count('"type": "array"') == schema.count('"maxItems"')


async def test_a_restart_asks_for_no_part_twice(context: Context, engine: FakeEngine) -> None:
    first = await summary(context)
    asked_before = len(engine.chats)
    assert await summary(again(context)) == first
    assert len(engine.chats) == asked_before


async def test_a_part_that_failed_is_lost_alone_and_asked_for_again(context: Context, engine: FakeEngine) -> None:
    engine.reply = lambda body: "no JSON" if "s0003" in body["messages"][1]["content"] else reply(body)
    found = await summary(context, overview=False)
    assert len(found.items) == PARTS - 1
    assert found.overview == ""
    assert context.folder.progress().warnings == ["segments s0003 to s0003 have no usable summary by the model"]
    engine.reply, engine.chats = reply, []
    assert len((await summary(again(context), overview=False)).items) == PARTS
    assert len(engine.chats) == 1


async def test_whole_items_of_a_cut_answer_are_kept(context: Context, engine: FakeEngine) -> None:
    engine.reply = lambda body: reply(body)[:-2] + ', {"kind": "point", "text": "and then and then'
    found = await summary(context, overview=False)
    assert [item.text for item in found.items] == [f"ship {item.id}" for item in SEGMENTS]
    assert context.folder.progress().warnings == []


async def test_overviews_that_cannot_be_merged_stand_one_after_the_other(context: Context, engine: FakeEngine) -> None:
    engine.reply = lambda body: "{" if "overviews" in body["messages"][0]["content"] else reply(body)
    found = await summary(context)
    assert found.overview == " ".join(f"Part {item.id}." for item in SEGMENTS)
    assert len(context.folder.progress().warnings) == 1


def test_a_part_is_bounded() -> None:
    assert MAX_ITEMS <= 20
    assert MAX_OVERVIEW <= 1000
