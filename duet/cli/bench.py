"""`duet bench cer` and `duet bench der`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.accuracy import backends, cer, der, figures, manifest, report
from duet.cli.failures import failed
from duet.errors import DuetError
from duet.settings import Settings
from speech.diarizers.port import Diarizer
from speech.diarizers.sherpa import SherpaDiarizer, find_diarizer


@dataclass(frozen=True)
class _Measured:
    """The result of a run of `duet bench cer`, and what was measured."""

    runs: list[cer.Run]
    review: cer.Review
    identity: str
    routes: dict[str, int]


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
    """Print the tables; with `out`, write `cer.json` and `cer.svg` there. Returns the exit code.

    Without `arms`, run every arm that has a model. A named arm that cannot be run is an error.
    """
    if unknown := [arm for arm in arms if arm not in cer.ARMS]:
        raise failed(f"--arms: unknown arm {unknown[0]!r}; there are {', '.join(cer.ARMS)}")
    if hypotheses is None and backend not in backends.BACKENDS:
        raise failed(f"--backend: {backend!r}; there are {', '.join(backends.BACKENDS)}")
    chosen = ["none", *(arm for arm in dict.fromkeys(arms or cer.ARMS) if arm != "none")]
    try:
        found = manifest.read(paths)
        if not found.utterances:
            raise failed("the manifest has no utterances with text")
        ears: backends.Backend = (
            backends.Ready(hypotheses) if hypotheses else backends.BACKENDS[backend](settings, model, quality)
        )
        cache = None if fresh else backends.Cache(settings.home / "bench" / "transcripts.jsonl")
        measured = asyncio.run(_cer(settings, found, ears, cache, chosen, review_model, needs_model=bool(arms)))
    except DuetError as error:
        raise failed(error.message) from error
    _show_cer(measured)
    if out is not None:
        about: dict[str, Any] = {
            "backend": measured.identity,
            "routes": measured.routes,
            "arms": chosen,
            "reviewer": None if measured.review.reviewer is None else asdict(measured.review.reviewer),
            "unreadable_answers": measured.review.unreadable,
            "bootstrap": {"samples": figures.SAMPLES, "seed": figures.SEED, "interval": figures.INTERVAL},
        }
        report.write(out / "cer.json", report.document(found, about, report.cer_result(found, measured.runs)))
        (out / "cer.svg").write_text(report.plot(measured.runs), encoding="utf-8")
        _console().print(f"Written: {out / 'cer.json'}, {out / 'cer.svg'}", highlight=False)
    return 0


def _show_cer(measured: _Measured) -> None:
    console = _console()
    for group in measured.runs[0].groups:
        console.print(report.cer_table(measured.runs, group))
    if measured.routes:
        told = ", ".join(f"{route} {count}" for route, count in sorted(measured.routes.items()))
        console.print(f"Transcribed by: {told}", highlight=False)
    if measured.review.problem:
        console.print(f"No arm with a language model: {measured.review.problem}", highlight=False)
    if measured.review.unreadable:
        console.print(f"{measured.review.unreadable} answers of the review model could not be read: no edit.")


async def _cer(
    settings: Settings,
    found: manifest.Manifest,
    ears: backends.Backend,
    cache: backends.Cache | None,
    arms: Sequence[str],
    review_model: str | None,
    *,
    needs_model: bool,
) -> _Measured:
    """Looks for the review model first: a run of hours must not end because there is none."""
    review = cer.Review(settings, review_model)
    with _progress() as progress:
        task = progress.add_task("recognition", total=len(found.utterances))
        try:
            if any(arm.startswith("lm") for arm in arms):
                await review.open()
            if review.problem and needs_model:
                raise backends.BackendError(f"--arms lm: {review.problem}")
            identity = await ears.identify()
            heard = await backends.transcripts(
                ears, found.utterances, cache, lambda done: progress.update(task, completed=done)
            )

            def advanced(what: str, done: int) -> None:
                progress.update(task, description=what, completed=done)

            runs = await cer.run(review, found, [one.text for one in heard], arms, advanced)
        finally:
            await ears.close()
            await review.close()
    routes = Counter(one.route + (" (degraded)" if one.degraded else "") for one in heard if one.route)
    return _Measured(runs, review, identity, dict(routes))


def run_der(settings: Settings, paths: Sequence[Path], *, collar_seconds: float, out: Path | None) -> int:
    """Print the table; with `out`, write `der.json` there. Returns the exit code."""
    folder = find_diarizer(settings)
    if folder is None:
        raise failed("no speaker models: set router.speaker_dir, or use --embedded")
    if not folder.is_dir():
        raise failed(f"{folder}: there is no such folder with speaker models")
    try:
        found = manifest.read(paths)
        if not found.meetings:
            raise failed("der needs meetings: JSON files with `turns`")
        results = asyncio.run(_der(SherpaDiarizer(folder), found, collar_seconds))
    except DuetError as error:
        raise failed(error.message) from error
    console = _console()
    console.print(report.der_table(results))
    if out is not None:
        about = {"models": f"{folder.name} {backends.digest_of_folder(folder)}", "collar_seconds": collar_seconds}
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
    """A console. Into a file or a pipe it is wide enough for every table."""
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
