"""The meetings' API against the running stack: submit, follow, fetch, refuse, delete."""

from __future__ import annotations

import io
import json
import threading
import time
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import srt

import models
from duet.testing.stack import Stack

DEMO = models.CARDS / "demo"
TRUTH = json.loads((DEMO / "meeting.json").read_text(encoding="utf-8"))
OUTPUTS = ("transcript", "reviewed", "timeline", "srt", "summary")


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client(stack.router_url) as found:
        yield found


def wav(seconds: float, level: float = 0.0) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        noise = np.random.default_rng(int(seconds * 1000)).normal(0, level * 32767, int(seconds * 16_000))
        file.writeframes(noise.astype("<i2").tobytes())
    return buffer.getvalue()


def submit(client: httpx.Client, data: bytes, **fields: Any) -> httpx.Response:
    return client.post("/v1/meetings", files={"file": ("meeting.flac", data)}, data=fields)


def follow(client: httpx.Client, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    """All events of a job to its end."""
    events, name = [], ""
    with client.stream("GET", f"/v1/meetings/{job_id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                events.append((name, json.loads(line[5:])))
    return events


def retry(client: httpx.Client, job_id: str) -> None:
    """Go on with a cancelled job. It may be asked to wait until the stage that runs has noticed."""
    deadline = time.monotonic() + 60
    while (answer := client.post(f"/v1/meetings/{job_id}/retry")).status_code != 202:
        assert (answer.status_code, "still being stopped" in answer.text) == (409, True), answer.text
        assert time.monotonic() < deadline, "the cancelled stage does not end"


@pytest.fixture(scope="module")
def meeting(client: httpx.Client) -> dict[str, Any]:
    """The shipped meeting, done."""
    answer = submit(
        client, (DEMO / "meeting.flac").read_bytes(), title="API test", glossary="\n".join(TRUTH["glossary"])
    )
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/meetings/{answer.json()['id']}"
    events = follow(client, answer.json()["id"])
    shares = [data["progress"] for _, data in events]
    assert shares == sorted(shares)
    assert events[-1][0] == "succeeded", events[-1]
    found: dict[str, Any] = events[-1][1]
    return found


def test_the_five_outputs_agree(client: httpx.Client, meeting: dict[str, Any]) -> None:
    assert set(meeting["outputs"]) == set(OUTPUTS)
    texts = {name: client.get(url).raise_for_status() for name, url in meeting["outputs"].items()}
    timeline = texts["timeline"].json()
    assert texts["timeline"].headers["content-type"] == "application/json"
    assert timeline["version"] == 1
    assert len(timeline["segments"]) >= 12
    assert {segment["language"] for segment in timeline["segments"]} == {"zh", "en"}
    assert all(segment["emotion"] and segment["event"] and segment["speaker"] for segment in timeline["segments"])
    ends = [0.0, *(segment["end"] for segment in timeline["segments"])]
    assert all(segment["start"] >= end - 0.01 for segment, end in zip(timeline["segments"], ends, strict=False))
    cues = list(srt.parse(texts["srt"].text))
    spoken = "".join(segment["reviewed"] for segment in timeline["segments"])
    shown = "".join(cue.content.partition(": ")[2] for cue in cues)
    assert "".join(shown.split()) == "".join(spoken.split())
    accepted = [edit for segment in timeline["segments"] for edit in segment["edits"] if edit.get("accepted")]
    assert accepted, "the review corrected nothing"
    assert all(f"**{edit['to']}**" in texts["reviewed"].text for edit in accepted)
    assert all(edit["to"] not in texts["transcript"].text for edit in accepted)
    assert "Written by duet-tiny-chat" in texts["summary"].text


def test_the_same_submission_is_the_same_job(client: httpx.Client, meeting: dict[str, Any]) -> None:
    data, glossary = (DEMO / "meeting.flac").read_bytes(), "\n".join(TRUTH["glossary"])
    again = submit(client, data, title="API test", glossary=glossary)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, meeting["id"], "succeeded")
    assert again.headers["x-duet-created"] == "false"


def test_meetings_are_listed_and_found(client: httpx.Client, meeting: dict[str, Any]) -> None:
    listed = client.get("/v1/meetings", params={"limit": 200}).json()["data"]
    assert meeting["id"] in [job["id"] for job in listed]
    assert client.get(f"/v1/meetings/{meeting['id']}").json() == meeting


@pytest.mark.parametrize(
    ("data", "fields", "status", "param"),
    [
        (b"", {}, 400, "file"),
        (b"this is no audio at all, only text" * 50, {}, 400, "file"),
        (b"#EXTM3U\nfile:///etc/passwd\n" * 20, {}, 400, "file"),
        (wav(1), {"glossary": "x" * 65}, 400, "glossary"),
        (wav(1), {"speakers": "0"}, 400, "speakers"),
        (wav(1), {"speakers": "many"}, 400, "speakers"),
        (wav(1), {"quality": "best"}, 400, "quality"),
        (wav(1), {"title": "t" * 201}, 400, "title"),
    ],
)
def test_a_bad_submission_names_its_parameter(
    client: httpx.Client, data: bytes, fields: dict[str, str], status: int, param: str
) -> None:
    answer = submit(client, data, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_an_unknown_field_is_reported(client: httpx.Client) -> None:
    answer = submit(client, wav(0.6), colour="blue")
    assert answer.headers["x-duet-ignored"] == "colour"
    assert follow(client, answer.json()["id"])[-1][0] == "succeeded"


@pytest.mark.parametrize("path", ["nope", "..%2f..%2fapi_key", "x" * 200])
def test_an_unknown_meeting_is_not_found(client: httpx.Client, path: str) -> None:
    for answer in (client.get(f"/v1/meetings/{path}"), client.delete(f"/v1/meetings/{path}")):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_a_silent_recording_succeeds_and_says_so(client: httpx.Client) -> None:
    job = follow(client, submit(client, wav(5), title="Silence").json()["id"])[-1][1]
    assert job["status"] == "succeeded"
    assert job["warnings"] == ["the recording is silent"]
    assert "Nothing was said" in client.get(job["outputs"]["summary"]).text
    assert client.get(job["outputs"]["srt"]).status_code == 200


def test_outputs_are_refused_before_the_end_and_a_cancelled_job_can_be_retried(client: httpx.Client) -> None:
    # Long enough to be under way still when it is cancelled.
    job_id = submit(client, wav(600, 0.05), title="Cancelled").json()["id"]
    early = client.get(f"/v1/meetings/{job_id}/outputs/srt")
    assert early.status_code == 409
    assert client.post(f"/v1/meetings/{job_id}/retry").status_code == 409
    cancelled = client.post(f"/v1/meetings/{job_id}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert follow(client, job_id)[-1][0] == "cancelled"
    retry(client, job_id)
    assert follow(client, job_id)[-1][0] == "succeeded"
    assert client.get(f"/v1/meetings/{job_id}/outputs/nothing").status_code == 404


def test_delete_removes_everything_derived(client: httpx.Client, stack: Stack) -> None:
    job = follow(client, submit(client, wav(3), title="Deleted").json()["id"])[-1][1]
    folder = stack.home / "meetings" / "jobs" / job["id"]
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o077 == 0
    assert client.delete(f"/v1/meetings/{job['id']}").status_code == 204
    assert not folder.exists()
    assert client.get(f"/v1/meetings/{job['id']}").status_code == 404
    assert client.get(job["outputs"]["srt"]).status_code == 404
    # And the same recording can come again.
    assert follow(client, submit(client, wav(3), title="Deleted").json()["id"])[-1][0] == "succeeded"


def kept(stack: Stack) -> dict[str, int]:
    """Entries of each model's KV cache, in memory and on SSD."""
    with stack.client(stack.engine_url) as engine:
        workers = engine.get("/v1/admin/kv").json()["workers"]
    return {
        name: shown.get("memory_entries", 0) + shown.get("disk_entries", 0) for name, shown in workers.items() if shown
    }


def test_no_word_of_a_deleted_meeting_is_left_in_the_home(client: httpx.Client, stack: Stack) -> None:
    with stack.client(stack.engine_url) as engine:
        engine.delete("/v1/admin/kv").raise_for_status()
    # A word that nothing else holds: the glossary puts it into the reviewed text, and so before the model.
    mark = "Zorbigon"
    glossary = f"{mark} | 我们 | 大家 | 今天 | we | the | is | a"
    job_id = submit(client, (DEMO / "meeting.flac").read_bytes(), title=f"{mark} weekly", glossary=glossary).json()[
        "id"
    ]
    assert follow(client, job_id)[-1][0] == "succeeded"
    assert mark in client.get(f"/v1/meetings/{job_id}/outputs/reviewed").text
    assert any(mark.encode() in path.read_bytes() for path in stack.home.rglob("*") if path.is_file())
    assert client.delete(f"/v1/meetings/{job_id}").status_code == 204
    left = [path for path in stack.home.rglob("*") if path.is_file() and mark.encode() in path.read_bytes()]
    assert left == []
    assert set(kept(stack).values()) <= {0}, "the review's and the summary's prompts are in no KV cache"


def test_short_clips_are_answered_while_a_meeting_runs(client: httpx.Client, stack: Stack) -> None:
    job_id = submit(client, wav(90, 0.05), title="Beside").json()["id"]
    ended: list[str] = []
    watcher = threading.Thread(target=lambda: ended.append(follow(client, job_id)[-1][0]))
    watcher.start()
    clip = (DEMO / "clip_zh.flac").read_bytes()
    while not ended:
        answer = client.post("/v1/audio/transcriptions", files={"file": ("clip.flac", clip)})
        assert answer.status_code == 200
        time.sleep(0.05)
    watcher.join()
    assert ended == ["succeeded"]


@pytest.mark.recordings
def test_real_recordings_go_through_the_pipeline(client: httpx.Client) -> None:
    import os
    from pathlib import Path

    folder = os.environ.get("DUET_TEST_AUDIO")
    if not folder:
        pytest.skip("DUET_TEST_AUDIO names no folder of recordings")
    for path in sorted(Path(folder).iterdir()):
        if path.suffix not in (".wav", ".flac", ".mp3", ".opus"):
            continue
        job = follow(client, submit(client, path.read_bytes(), title=path.stem).json()["id"])[-1][1]
        assert job["status"] == "succeeded", (path.name, job["error"])
        timeline = client.get(job["outputs"]["timeline"]).json()
        for segment in timeline["segments"]:
            assert 0 <= segment["start"] < segment["end"] <= timeline["duration"] + 0.01, path.name
