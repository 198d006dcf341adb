"""`make demo`, or `python -m duet.demo`: try every feature once, offline, with the models that come with Duet.

It chats, reads an image, embeds text, transcribes a clip and turns a bilingual meeting into five files. It reports how
long each part took and how many errors the review removed. The models are tiny demonstrations trained on synthetic
voices: the demo shows that Duet works, not how well real models do.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import models
from duet.client import offered_name
from duet.testing.stack import Stack, StackFailed, running
from duet.wire import SpeakerTurn
from speech.metrics import ErrorCounts, cer, der

DEMO = models.CARDS / "demo"
CHAT_PROMPT = "Who are you?"
QUERY = "谁负责部署数据库？"
SENTENCES = (
    "who is responsible to deploy the database?",
    "部署数据库该找谁？",
    "the printer is broken and the boss is worried.",
    "我们下周再谈合同。",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console()
    given = os.environ.get("DUET_HOME")  # noqa: TID251 - the only variable that the demo reads
    try:
        figures = run(console, Path(given).absolute() if given else None)
    except (StackFailed, DemoFailed, httpx.HTTPError) as error:
        console.print(f"[red]The demo failed:[/red] {error}", highlight=False)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0


class DemoFailed(Exception):
    """A part of the demo gave no usable result."""


def run(console: Console, home: Path | None) -> dict[str, Any]:
    """Run all parts in order. Returns their figures. Outputs go to `demo-outputs` in the home or the current folder."""
    console.rule("[bold]Duet")
    console.print("Starting engine, router and meeting worker with the embedded demonstration models …")
    began = time.monotonic()
    with running(home) as stack:
        times: dict[str, float] = {"start": time.monotonic() - began}
        outputs = (home or Path.cwd()) / "demo-outputs"
        figures: dict[str, Any] = {}
        parts: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("chat", lambda: chat(console, stack)),
            ("vision", lambda: vision(console, stack)),
            ("embeddings", lambda: embeddings(console, stack)),
            ("transcription", lambda: transcription(console, stack)),
            ("meeting", lambda: meeting(console, stack, outputs)),
        ]
        for name, part in parts:
            console.rule(f"[bold]{name}")
            started = time.monotonic()
            figures[name] = part()
            times[name] = time.monotonic() - started
    console.rule("[bold]time")
    stages = {f"meeting: {stage['name']}": stage["seconds"] for stage in figures["meeting"]["stages"]}
    console.print(table(("part", "seconds"), [(name, f"{seconds:.2f}") for name, seconds in (times | stages).items()]))
    console.print(
        f"Everything took {time.monotonic() - began:.1f} s. The five outputs are in {outputs}", highlight=False
    )
    return {**figures, "seconds": {name: round(seconds, 2) for name, seconds in times.items()}}


def engine(stack: Stack, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send an OpenAI request to the engine and return its JSON answer."""
    with stack.client(stack.engine_url) as client:
        answer: dict[str, Any] = client.post(path, json=body).raise_for_status().json()
    return answer


def chat(console: Console, stack: Stack) -> dict[str, Any]:
    """Stream the tiny model's answer to a question about itself: the only kind of chat it knows."""
    console.print(
        "duet-tiny-chat reviews and summarises meetings, and says what it is. It cannot hold a conversation.",
        style="dim",
    )
    console.print(f"[bold]user[/bold]  {CHAT_PROMPT}", highlight=False)
    console.print("[bold]model[/bold] ", end="")
    pieces, first, started = [], 0.0, time.monotonic()
    body = {
        "model": "chat", "messages": [{"role": "user", "content": CHAT_PROMPT}], "temperature": 0, "stream": True,
    }  # fmt: skip
    with (
        stack.client(stack.engine_url) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        if answer.is_error:
            raise DemoFailed(f"the engine answered {answer.status_code}: {answer.read().decode()}")
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue  # blank lines, comments and [DONE]
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise DemoFailed(chunk["error"]["message"])
            if text := chunk["choices"][0]["delta"].get("content"):
                first = first or time.monotonic() - started
                pieces.append(text)
                console.print(text, end="", highlight=False, markup=False)
    console.print()
    if not pieces:
        raise DemoFailed("the chat model said nothing")
    console.print(f"first token after {first:.2f} s (the model was loaded for it)", style="dim")
    return {"answer": "".join(pieces), "ttft_seconds": round(first, 3)}


def vision(console: Console, stack: Stack) -> dict[str, Any]:
    """Send images of rendered words and digits to the OCR model, as any OpenAI client would."""
    truth: dict[str, str] = json.loads((DEMO / "pictures" / "texts.json").read_text(encoding="utf-8"))
    read: dict[str, str] = {}
    for name in truth:
        image = base64.b64encode((DEMO / "pictures" / name).read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}]
        body = {"model": "ocr", "messages": [{"role": "user", "content": content}]}
        read[name] = engine(stack, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
    console.print(table(("image", "shows", "read"), [(name, shown, read[name]) for name, shown in truth.items()]))
    return {"read": read, "right": sum(read[name] == shown for name, shown in truth.items()), "images": len(truth)}


def embeddings(console: Console, stack: Stack) -> dict[str, Any]:
    """Compare a Chinese question with four Chinese and English sentences."""
    body = {"model": "embedding", "input": [QUERY, *SENTENCES]}
    vectors = [item["embedding"] for item in engine(stack, "/v1/embeddings", body)["data"]]
    scores = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:]]
    console.print(f"[bold]query[/bold] {QUERY}", highlight=False)
    rows = sorted(zip(scores, SENTENCES, strict=True), reverse=True)
    console.print(table(("cosine", "sentence"), [(f"{score:.3f}", sentence) for score, sentence in rows]))
    return {"query": QUERY, "scores": {sentence: round(score, 4) for score, sentence in rows}}


def transcription(console: Console, stack: Stack) -> dict[str, Any]:
    """Send a shipped clip to the router, as any OpenAI client would."""
    truth = json.loads((DEMO / "clip_zh.json").read_text(encoding="utf-8"))["text"]
    with stack.client(stack.router_url) as client, (DEMO / "clip_zh.flac").open("rb") as file:
        answer = client.post(
            "/v1/audio/transcriptions", files={"file": ("clip_zh.flac", file)}, data={"model": "whisper-1"}
        )
    answer.raise_for_status()
    heard = answer.json()["text"]
    errors = cer(truth, heard)
    route = f"{answer.headers['X-Duet-Route']} ({answer.headers['X-Duet-Route-Reason']})"
    console.print(f"[bold]said[/bold]  {truth}\n[bold]heard[/bold] {heard}", highlight=False)
    console.print(f"CER {100 * errors.rate:.1f}%, route {route}", style="dim", highlight=False)
    return {"text": heard, "cer": round(errors.rate, 4), "route": answer.headers["X-Duet-Route"]}


def meeting(console: Console, stack: Stack, outputs: Path) -> dict[str, Any]:
    """Process the shipped meeting: three synthetic speakers, Chinese and English, with a glossary of misheard terms."""
    truth = json.loads((DEMO / "meeting.json").read_text(encoding="utf-8"))
    with stack.client(stack.router_url) as client:
        with (DEMO / "meeting.flac").open("rb") as file:
            fields = {"title": truth["title"], "glossary": "\n".join(truth["glossary"])}
            answer = client.post("/v1/meetings", files={"file": ("meeting.flac", file)}, data=fields)
        answer.raise_for_status()
        job = follow(console, client, answer.json()["id"])
        if job["status"] != "succeeded":
            raise DemoFailed(f"the meeting {job['status']}: {job['error']}")
        outputs.mkdir(parents=True, exist_ok=True)
        names = {}
        for name, url in job["outputs"].items():
            output = client.get(url).raise_for_status()
            if not output.content:
                raise DemoFailed(f"the output {name} is empty")
            names[name] = offered_name(output).removeprefix(f"{job['id']}-")
            (outputs / names[name]).write_bytes(output.content)
    for name, file_name in names.items():
        console.print(f"[bold]{name}[/bold] {outputs / file_name}", highlight=False)
        console.print(
            excerpt((outputs / file_name).read_text(encoding="utf-8")), style="dim", highlight=False, markup=False
        )
    timeline = json.loads((outputs / names["timeline"]).read_text(encoding="utf-8"))
    found = score(truth, timeline)
    rows = [
        ("CER before review", f"{100 * found['cer_before']:.1f}%"),
        ("CER after review", f"{100 * found['cer_after']:.1f}%"),
        ("corrections accepted, rejected", f"{found['accepted']}, {found['rejected']}"),
        ("speakers found, true", f"{found['speakers']}, {len({turn['speaker'] for turn in truth['turns']})}"),
        ("DER (0.25 s collar)", f"{100 * found['der']:.1f}%"),
    ]
    console.print(table(("measure", "value"), rows))
    return {**found, "duration": job["duration"], "stages": job["stages"], "warnings": job["warnings"]}


def follow(console: Console, client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Follow a job's events with a progress bar until it ends. Returns the final job."""
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    job: dict[str, Any] = {}
    with (
        Progress(*columns, console=console) as progress,
        client.stream("GET", f"/v1/meetings/{job_id}/events") as stream,
    ):
        bar = progress.add_task("queued", total=1.0)
        for line in stream.iter_lines():
            if line.startswith("data:"):
                job = json.loads(line[5:])
                progress.update(bar, completed=job["progress"], description=job["stage"] or job["status"])
    return job


def score(truth: dict[str, Any], timeline: dict[str, Any]) -> dict[str, Any]:
    """Errors against the truth. The whole texts are compared, because segments and turns may have different boundaries."""
    said = " ".join(turn["text"] for turn in truth["turns"])
    before: ErrorCounts = cer(said, " ".join(segment["text"] for segment in timeline["segments"]))
    after: ErrorCounts = cer(said, " ".join(segment["reviewed"] for segment in timeline["segments"]))
    edits = [edit for segment in timeline["segments"] for edit in segment["edits"]]
    reference = [SpeakerTurn(turn["start"], turn["end"], turn["speaker"]) for turn in truth["turns"]]
    heard = [SpeakerTurn(turn["start"], turn["end"], turn["speaker"]) for turn in timeline["turns"]]
    return {
        "cer_before": round(before.rate, 4),
        "cer_after": round(after.rate, 4),
        "accepted": sum(edit.get("accepted", False) for edit in edits),
        "rejected": sum(not edit.get("accepted", False) for edit in edits),
        "speakers": len({turn["speaker"] for turn in timeline["turns"]}),
        "der": round(der(reference, heard).rate, 4),
    }


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    made = Table(*heads)
    for row in rows:
        made.add_row(*row)
    return made


def excerpt(text: str, lines: int = 8) -> str:
    kept = [line for line in text.splitlines() if line.strip()][:lines]
    return "\n".join(f"    {line[:110]}" for line in kept)


if __name__ == "__main__":
    sys.exit(main())
