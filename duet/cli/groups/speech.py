"""`duet transcribe` and `duet meeting`: recordings through the running router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from duet.cli.groups.settings import settings_or_exit


def transcribe(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    response_format: Annotated[str, typer.Option("--format", help="text, json, verbose_json, srt or vtt")] = "text",
    quality: Annotated[str, typer.Option(help="auto, fast or high")] = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a recording that is cut short.")] = False,
) -> None:
    """Transcribe a recording with the running router.

    Example: duet transcribe talk.m4a --format srt > talk.srt
    """
    from duet.cli.client import transcribe as run

    raise typer.Exit(run(settings_or_exit(), file, response_format, quality, strict=strict))


def meeting(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    title: Annotated[str, typer.Option(help="Title of the outputs.")] = "",
    glossary: Annotated[
        Path | None, typer.Option(help="File with one term a line, aliases after |.", exists=True)
    ] = None,
    speakers: Annotated[int | None, typer.Option(help="Number of speakers, if you know it.", min=1, max=32)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a recording that is cut short.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the five outputs.")] = Path(),
) -> None:
    """Send a recording through the meeting pipeline and fetch its five outputs.

    Example: duet meeting call.m4a --title "Weekly" --glossary terms.txt --out weekly
    """
    from duet.cli.client import meeting as run

    settings = settings_or_exit()
    raise typer.Exit(run(settings, file, title=title, glossary=glossary, speakers=speakers, strict=strict, out=out))
