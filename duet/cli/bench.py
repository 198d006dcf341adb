"""`duet bench cer` and `duet bench der`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.accuracy import backends, cer, der, manifest, report
from duet.cli.failures import failed
from duet.errors import DuetError
from duet.settings import Settings
from speech.diarizer import Diarizer, find_diarizer


def run_cer(
    settings: Settings,
    paths: Sequence[Path],
    *,
    backend: str,
    model: str | None,
    quality: str,
    hypotheses: Path | None,
    arms: Sequence[str],
    review_model: str | None,
    out: Path | None,
    fresh: bool,
) -> int:
    """Print the tables; with `out`, write `cer.json` and `cer.svg` there. Returns the exit code."""
    if unknown := [arm for arm in arms if arm not in cer.ARMS]:
        raise failed(f"--arms: unknown arm {unknown[0]!r}; there are {', '.join(cer.ARMS)}")
    if hypotheses is None and backend not in backends.BACKENDS:
        raise failed(f"--backend: {backend!r}; there are {', '.join(backends.BACKENDS)}")
    chosen = ["none", *(arm for arm in dict.fromkeys(arms) if arm != "none")]
    try:
        found = manifest.read(paths)
        if not found.utterances:
            raise failed("the manifest has no utterances with text")
        ears: backends.Backend = (
            backends.Ready(hypotheses) if hypotheses else backends.BACKENDS[backend](settings, model, quality)
        )
        cache = None if fresh else backends.Cache(settings.home / "bench" / "transcripts.jsonl")
        runs, review = asyncio.run(_cer(settings, found, ears, cache, chosen, review_model))
    except DuetError as error:
        raise failed(error.message) from error
    console = _console()
    for group in runs[0].groups:
        console.print(report.cer_table(runs, group))
    if review.problem:
        console.print(f"No arm with a language model: {review.problem}", highlight=False)
    if review.unreadable:
        console.print(f"{review.unreadable} answers of the review model could not be read and count as no edit.")
    if out is not None:
        about: dict[str, Any] = {
            "backend": ears.identity,
            "arms": chosen,
            "reviewer": None if review.reviewer is None else review.reviewer.id,
            "unreadable_answers": review.unreadable,
        }
        report.write(out / "cer.json", report.document(found, about, report.cer_result(found, runs)))
        (out / "cer.svg").write_text(report.plot(runs), encoding="utf-8")
        console.print(f"Written: {out / 'cer.json'}, {out / 'cer.svg'}", highlight=False)
    return 0


async def _cer(
    settings: Settings,
    found: manifest.Manifest,
    ears: backends.Backend,
    cache: backends.Cache | None,
    arms: Sequence[str],
    review_model: str | None,
) -> tuple[list[cer.Run], cer.Review]:
    review = cer.Review(settings, review_model)
    with _progress() as progress:
        task = progress.add_task("recognition", total=len(found.utterances))
        try:
            heard = await backends.transcripts(
                ears, found.utterances, cache, lambda done: progress.update(task, completed=done)
            )
        finally:
            await ears.close()

        def advanced(what: str, done: int) -> None:
            progress.update(task, description=what, completed=done)

        try:
            if any(arm.startswith("lm") for arm in arms):
                await review.open()
            return await cer.run(review, found, heard, arms, advanced), review
        finally:
            await review.close()


def run_der(settings: Settings, paths: Sequence[Path], *, collar_seconds: float, out: Path | None) -> int:
    """Print the table; with `out`, write `der.json` there. Returns the exit code."""
    folder = find_diarizer(settings)
    if folder is None:
        raise failed("no speaker models: set router.speaker_dir, or use --embedded")
    try:
        found = manifest.read(paths)
        if not found.meetings:
            raise failed("der needs meetings: JSON files with `turns`")
        results = asyncio.run(_der(Diarizer(folder), found, collar_seconds))
    except DuetError as error:
        raise failed(error.message) from error
    console = _console()
    console.print(report.der_table(results))
    if out is not None:
        about = {"models": str(folder), "collar_seconds": collar_seconds}
        report.write(out / "der.json", report.document(found, about, report.der_result(results)))
        console.print(f"Written: {out / 'der.json'}", highlight=False)
    return 0


async def _der(diarizer: Diarizer, found: manifest.Manifest, collar_seconds: float) -> list[der.Diarization]:
    with _progress() as progress:
        task = progress.add_task("diarization", total=2 * len(found.meetings))
        try:
            return await der.run(diarizer, found.meetings, collar_seconds, lambda _: progress.advance(task))
        finally:
            await diarizer.close()


def _console() -> Console:
    """A table that goes into a file or a pipe is as wide as it needs to be."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, transient=True, console=Console(stderr=True))
