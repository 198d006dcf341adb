"""`duet bench`: measure on recordings of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from duet.cli.groups.settings import settings_or_exit

app = typer.Typer(help="Measure recognition, review and diarization on recordings of your own.", no_args_is_help=True)


_Manifests = Annotated[
    list[Path],
    typer.Option(
        "--manifest", help="JSONL of utterances or JSON of a meeting; may be repeated.", exists=True, dir_okay=False
    ),
]
_Embedded = Annotated[bool, typer.Option("--embedded", help="Use the embedded demonstration models.")]
_Out = Annotated[Path | None, typer.Option(help="Folder for the results as JSON and SVG.", file_okay=False)]


@app.command()
def cer(
    manifest: _Manifests,
    backend: Annotated[str, typer.Option(help="sensevoice, router or engine")] = "sensevoice",
    model: Annotated[str | None, typer.Option(help="Model id, or for sensevoice its folder.")] = None,
    quality: Annotated[str, typer.Option(help="For the router: auto, fast or high.")] = "auto",
    hypotheses: Annotated[
        Path | None, typer.Option(help="Score these transcripts instead: JSONL of id and text.", exists=True)
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Of none, rule, lm, lm+rule; lm needs a running engine. Without it: all there is.")
    ] = "",
    review_model: Annotated[str | None, typer.Option(help="Instead of meetings.review_model.")] = None,
    embedded: _Embedded = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Transcribe again what an earlier run transcribed.")] = False,
    out: _Out = None,
) -> None:
    """Character error rate of a recogniser, and what review by rule and by language model makes of it.

    Example: duet bench cer --manifest sentences.jsonl --backend router --quality high --out results
    """
    from duet.cli.bench import run_cer

    settings = settings_or_exit(**({"embedded": True} if embedded else {}))
    chosen = [arm.strip() for arm in arms.split(",") if arm.strip()]
    raise typer.Exit(
        run_cer(
            settings,
            manifest,
            backend=backend,
            model=model,
            quality=quality,
            hypotheses=hypotheses,
            arms=chosen,
            review_model=review_model,
            out=out,
            fresh=fresh,
        )
    )


@app.command()
def der(
    manifest: _Manifests,
    collar: Annotated[float, typer.Option(help="Seconds around each boundary that do not count.", min=0, max=2)] = 0.25,
    embedded: _Embedded = False,
    out: _Out = None,
) -> None:
    """Diarization error rate on meetings, with unknown and with given number of speakers.

    Example: duet bench der --embedded --manifest meeting.json
    """
    from duet.cli.bench import run_der

    settings = settings_or_exit(**({"embedded": True} if embedded else {}))
    raise typer.Exit(run_der(settings, manifest, collar_seconds=collar, out=out))
