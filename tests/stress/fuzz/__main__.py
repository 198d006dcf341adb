"""Send damaged media files and damaged model folders to a running stack: no service may die, and each answer must be right.

    make fuzz                   (python -m tests.stress.fuzz --media 3000 --folders 1000 --json FILE)
    python -m tests.stress.fuzz --only media:17            one case again; --keep DIR writes its file or folder there

Right is: a 4xx of ours that says what is wrong, a model folder named as bad, or a result with sane fields. A real
`duet up --embedded` serves; the engine also has a random speech model. Each media file goes to both services.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from duet.testing.stack import Stack, running
from tests.checkpoints import write
from tests.stress.fuzz import folders, media, verdict
from tests.stress.fuzz.watch import Watch

RESULT = Path("benchmarks/results/fuzz.json")
CLIENTS = 4
PATIENCE_SECONDS = 120.0
"""An answer that takes longer counts as a request that hangs."""
LIMITS_MEGABYTES = {"engine.worker": 2500.0, "engine": 900.0, "asr_router": 700.0, "pipelines": 700.0, "": 2000.0}
"""Resident memory. The last word fits every other process: the children that decode and recognise."""
BATCH = 16
"""Model folders that lie beside each other at once."""
DISCOVERY_SECONDS = 30.0


@dataclass
class Found:
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, case: object, door: str, status: int, fault: str | None) -> None:
        self.answers[f"{door} {status}"] += 1
        if fault is not None:
            self.wrong.append(f"{case}: {door}: {fault}")
            print(f"WRONG {self.wrong[-1]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, default=3000, help="how many media files")
    parser.add_argument("--folders", type=int, default=1000, help="how many model folders")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--only", help="one case: media:NUMBER or folder:NUMBER")
    parser.add_argument("--keep", type=Path, help="with --only: write the case here")
    parser.add_argument("--json", type=Path, default=RESULT, help="write the result to this file")
    arguments = parser.parse_args()
    numbers = {"media": range(arguments.media), "folder": range(arguments.folders)}
    if arguments.only:
        kind, _, number = arguments.only.partition(":")
        numbers = {name: range(int(number), int(number) + 1) if name == kind else range(0) for name in numbers}
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="duet-fuzz-") as place:
        home = Path(place, "home")
        (home / "models").mkdir(parents=True)
        (home / "config.toml").write_text(f"[engine]\nmodel_dirs = [{json.dumps(str(home / 'models'))}]\n")
        write("qwen3_asr", home / "models" / "random-asr")
        with running(home) as stack:
            found, watch = asyncio.run(fuzz(stack, numbers["media"], numbers["folder"], arguments.seed, arguments.keep))
            log = stack.log.read_text(errors="replace")
    checks = {
        "every answer is right": not found.wrong,
        "no program ended": not watch.ended and "program_ended" not in log,
        "memory stays bounded": not watch.too_large,
        "no code of a model folder ran": not (home / "models" / folders.MARK).exists(),
    }
    result = {
        "seed": arguments.seed, "media": len(numbers["media"]), "folders": len(numbers["folder"]),
        "seconds": round(time.monotonic() - started_at), "checks": checks, "answers": dict(sorted(found.answers.items())),
        "most_megabytes": watch.most_megabytes, "ended": watch.ended, "too_large": watch.too_large[:20], "wrong": found.wrong,
    }  # fmt: skip
    if not arguments.only:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1, ensure_ascii=False))
    failed = [name for name, passed in checks.items() if not passed]
    print("failed: " + ", ".join(failed) if failed else "all checks passed")
    return 1 if failed else 0


async def fuzz(stack: Stack, files: range, places: range, seed: int, keep: Path | None) -> tuple[Found, Watch]:
    found, watch = Found(), Watch(stack.pid, LIMITS_MEGABYTES)
    watch.begin()
    looking = asyncio.create_task(watch.run())
    headers = {"Authorization": f"Bearer {stack.key}"}
    try:
        async with httpx.AsyncClient(headers=headers, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            await send_media(client, stack, files, seed, found, keep)
            await send_folders(client, stack, places, seed, found, keep)
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
    watch.look()
    return found, watch


# Media files ----------------------------------------------------------------------------------------------------------


async def send_media(
    client: httpx.AsyncClient, stack: Stack, numbers: range, seed: int, found: Found, keep: Path | None
) -> None:
    whole = media.whole_files()
    left = iter(numbers)

    async def one_after_another() -> None:
        for number in left:
            case = media.case(seed, number, whole)
            if keep is not None:
                keep.write_bytes(case.data)
            if case.use == "picture":
                await _picture(client, stack, case, found)
            else:
                await _audio(client, stack, case, found)
            if number % 100 == 99:
                print(f"media {number + 1}: {len(found.wrong)} wrong", flush=True)

    await asyncio.gather(*(one_after_another() for _ in range(CLIENTS)))


async def _audio(client: httpx.AsyncClient, stack: Stack, case: media.Case, found: Found) -> None:
    for door, url, model in (("router", stack.router_url, "auto"), ("engine", stack.engine_url, "random-asr")):
        form = {"model": model, "response_format": "verbose_json", "language": "en"}
        sent = {"files": {"file": ("a.bin", case.data)}, "data": form}
        status, body = await _posted(client, f"{url}/v1/audio/transcriptions", sent)
        found.note(case, door, status, verdict.of_transcription(status, body))


async def _picture(client: httpx.AsyncClient, stack: Stack, case: media.Case, found: Found) -> None:
    import base64

    address = "data:image/png;base64," + base64.b64encode(case.data).decode()
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "Read it."}]
    body = {"model": "duet-tiny-vl", "max_tokens": 2, "messages": [{"role": "user", "content": content}]}
    status, answer = await _posted(client, f"{stack.engine_url}/v1/chat/completions", {"json": body})
    found.note(case, "picture", status, verdict.of_completion(status, answer))


async def _posted(client: httpx.AsyncClient, url: str, sent: dict[str, Any]) -> tuple[int, bytes]:
    """Status and body; 0 and the reason when there was no answer. A busy service is asked again."""
    for _ in range(20):
        try:
            answer = await client.post(url, **sent)
        except httpx.HTTPError as error:
            return 0, f"no answer: {type(error).__name__}".encode()
        if answer.status_code != 429:
            break
        await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
    return answer.status_code, answer.content


# Model folders --------------------------------------------------------------------------------------------------------


async def send_folders(
    client: httpx.AsyncClient, stack: Stack, numbers: range, seed: int, found: Found, keep: Path | None
) -> None:
    if not numbers:
        return
    place = stack.home / "models"
    with tempfile.TemporaryDirectory(prefix="duet-fuzz-whole-") as whole_place:
        whole = folders.whole_folders(keep or Path(whole_place))
        for first in range(numbers.start, numbers.stop, BATCH):
            batch = range(first, min(first + BATCH, numbers.stop))
            cases = [folders.make(seed, number, whole, place) for number in batch]
            await asyncio.sleep(2.5)  # the engine looks at the disk every two seconds
            await _still_served(client, stack, cases[0], found)
            left = iter(cases)

            async def one_after_another(left: Any = left) -> None:
                for case in left:
                    await _folder(client, stack, case, found)

            await asyncio.gather(*(one_after_another() for _ in range(2)))
            await _still_served(client, stack, cases[-1], found)
            for case in cases:
                await _posted(client, f"{stack.engine_url}/v1/admin/models/{case.name}/unload?force=true", {})
                if keep is None:
                    folders.remove(case, place)
                else:
                    (place / case.name).rename(keep / case.name)
            print(f"folders {batch.stop}: {len(found.wrong)} wrong", flush=True)


async def _still_served(client: httpx.AsyncClient, stack: Stack, case: folders.Case, found: Found) -> None:
    """Bad folders harm no other model, and no list."""
    for path in ("/v1/models", "/ready", "/v1/admin/status"):
        answer = await client.get(stack.engine_url + path)
        if answer.status_code not in (200, 404):
            found.note(case, path, answer.status_code, f"{answer.status_code} beside bad folders: {answer.text[:160]}")
    body = {"model": "duet-tiny-chat", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
    status, answered = await _posted(client, f"{stack.engine_url}/v1/chat/completions", {"json": body})
    fault = verdict.of_completion(status, answered)
    found.note(
        case, "healthy", status, fault if status == 200 else f"a healthy model answers {status}: {answered[:160]!r}"
    )


async def _folder(client: httpx.AsyncClient, stack: Stack, case: folders.Case, found: Found) -> None:
    sent: dict[str, Any]
    match case.kind:
        case "embedding":
            path, judge = "embeddings", verdict.of_embedding
            sent = {"json": {"model": case.name, "input": "hello"}}
        case "qwen3_asr":
            path, judge = "audio/transcriptions", verdict.of_transcription
            sent = {
                "files": {"file": ("a.wav", _sound())},
                "data": {"model": case.name, "response_format": "verbose_json"},
            }
        case _:
            path, judge = "chat/completions", verdict.of_completion
            said = {"model": case.name, "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
            sent = {"json": said}
    status, body = await _posted(client, f"{stack.engine_url}/v1/{path}", sent)
    fault = judge(status, body) if status == 200 else verdict.of_error(status, body, named=case.name)
    found.note(case, "folder", status, fault)


@functools.cache
def _sound() -> bytes:
    return media.whole_files()["wav s16"]


if __name__ == "__main__":
    sys.exit(main())
