"""The `duet` command. Each verb imports what it needs when it runs: `duet --help` stays fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from duet.settings import EXIT_CONFIG, Settings, SettingsError, load_settings

app = typer.Typer(
    help="Duet: a local AI stack. An OpenAI-compatible engine and a speech router with meetings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
service = typer.Typer(help="Run Duet at login: launchd on macOS, systemd user units on Linux.", no_args_is_help=True)
app.add_typer(service, name="service")
bench = typer.Typer(help="Measure recognition, review and diarization on recordings of your own.", no_args_is_help=True)
app.add_typer(bench, name="bench")
kv = typer.Typer(
    help="The KV cache: prompts that were computed once and are kept, in memory and on SSD.", no_args_is_help=True
)
app.add_typer(kv, name="kv")
models = typer.Typer(help="Which models are loaded, and which stay. The engine must be running.", no_args_is_help=True)
app.add_typer(models, name="models")


def settings_or_exit(**overrides: Any) -> Settings:
    """The settings; exit code 78 with the key's name when one is wrong."""
    try:
        return load_settings(**overrides)
    except SettingsError as error:
        typer.echo(f"duet: {error}", err=True)
        raise typer.Exit(EXIT_CONFIG) from error


@app.command()
def up(
    embedded: Annotated[bool, typer.Option("--embedded", help="Use the embedded demonstration models.")] = False,
    engine_port: Annotated[int | None, typer.Option(help="Port of the engine.", min=1, max=65535)] = None,
    router_port: Annotated[int | None, typer.Option(help="Port of the router.", min=1, max=65535)] = None,
) -> None:
    """Run engine, router and meeting worker in the foreground; Ctrl-C stops all.

    Example: duet up --embedded
    """
    from duet.cli.up import run

    overrides: dict[str, Any] = {"embedded": True} if embedded else {}
    if engine_port is not None:
        overrides["engine"] = {"port": engine_port}
    if router_port is not None:
        overrides["router"] = {"port": router_port}
    raise typer.Exit(run(settings_or_exit(**overrides)))


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what runs, which models there are and where they are. Exit code 1 when a service is down.

    Example: duet status --json
    """
    from duet.cli.status import run

    raise typer.Exit(run(settings_or_exit(), as_json=as_json))


@app.command()
def key(path: Annotated[bool, typer.Option("--path", help="Print the file, not the key.")] = False) -> None:
    """Print the API key of both services (made on first use).

    Example: export OPENAI_API_KEY=$(duet key)
    """
    from duet.cli.failures import key_or_exit
    from duet.keys import KEY_FILE

    home = settings_or_exit().home
    value = key_or_exit(home)
    typer.echo(str(home / KEY_FILE) if path else value)


@app.command()
def config() -> None:
    """Print every setting and where it comes from; what is printed can be used as config.toml.

    Example: DUET_ENGINE__PORT=9000 duet config
    """
    from duet.cli.config import lines

    for line in lines(settings_or_exit()):
        typer.echo(line)


@app.command()
def transcribe(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    response_format: Annotated[str, typer.Option("--format", help="text, json, verbose_json, srt or vtt")] = "text",
    quality: Annotated[str, typer.Option(help="auto, fast or high")] = "auto",
) -> None:
    """Transcribe a recording with the running router.

    Example: duet transcribe talk.m4a --format srt > talk.srt
    """
    from duet.cli.client import transcribe as run

    raise typer.Exit(run(settings_or_exit(), file, response_format, quality))


@app.command()
def meeting(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    title: Annotated[str, typer.Option(help="Title of the outputs.")] = "",
    glossary: Annotated[
        Path | None, typer.Option(help="File with one term a line, aliases after |.", exists=True)
    ] = None,
    speakers: Annotated[int | None, typer.Option(help="Number of speakers, if you know it.", min=1, max=32)] = None,
    out: Annotated[Path, typer.Option(help="Folder for the five outputs.")] = Path(),
) -> None:
    """Send a recording through the meeting pipeline and fetch its five outputs.

    Example: duet meeting call.m4a --title "Weekly" --glossary terms.txt --out weekly
    """
    from duet.cli.client import meeting as run

    raise typer.Exit(run(settings_or_exit(), file, title=title, glossary=glossary, speakers=speakers, out=out))


@app.command()
def version() -> None:
    """Print the version."""
    import importlib.metadata

    typer.echo(importlib.metadata.version("mlx-duet"))


_Manifests = Annotated[
    list[Path],
    typer.Option(
        "--manifest", help="JSONL of utterances or JSON of a meeting; may be repeated.", exists=True, dir_okay=False
    ),
]
_Embedded = Annotated[bool, typer.Option("--embedded", help="Use the embedded demonstration models.")]
_Out = Annotated[Path | None, typer.Option(help="Folder for the results as JSON and SVG.", file_okay=False)]


@bench.command()
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


@bench.command()
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


@kv.command(name="stats")
def kv_stats(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what is kept, by model, and what loaded models hold in memory.

    Example: duet kv stats
    """
    from duet.cli.kv import stats

    raise typer.Exit(stats(settings_or_exit(), as_json=as_json))


@kv.command(name="clear")
def kv_clear(model: Annotated[str | None, typer.Option(help="One model's id; default: all.")] = None) -> None:
    """Forget what is kept, of one model or of all.

    Example: duet kv clear --model duet-tiny-chat
    """
    from duet.cli.kv import clear

    raise typer.Exit(clear(settings_or_exit(), model))


@kv.command(name="verify")
def kv_verify() -> None:
    """Read every file and name the damaged ones. Exit code 1 when there are any.

    Example: duet kv verify
    """
    from duet.cli.kv import verify

    raise typer.Exit(verify(settings_or_exit()))


_Model = Annotated[str, typer.Argument(help="Id, alias, role or repo id.")]


@models.command(name="list")
def models_list(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say which models there are, which are loaded, what they hold, and what is left.

    Example: duet models list
    """
    from duet.cli.models import show

    raise typer.Exit(show(settings_or_exit(), as_json=as_json))


@models.command(name="load")
def models_load(model: _Model) -> None:
    """Load a model now, downloading it if need be; other idle models may have to leave.

    Example: duet models load qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "load"))


@models.command(name="unload")
def models_unload(
    model: _Model, force: Annotated[bool, typer.Option("--force", help="Also while it answers: requests fail.")] = False
) -> None:
    """Unload a model and get its memory back, pinned or not.

    Example: duet models unload qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "unload", force=force))


@models.command(name="pin")
def models_pin(model: _Model) -> None:
    """Let a model stay once it is loaded, until the engine ends.

    Example: duet models pin qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "pin"))


@models.command(name="unpin")
def models_unpin(model: _Model) -> None:
    """Let a model go like any other.

    Example: duet models unpin qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "unpin"))


@service.command()
def install(
    embedded: Annotated[bool, typer.Option("--embedded", help="Use the embedded demonstration models.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written and run.")] = False,
) -> None:
    """Write and load the services: start at login, restart after a crash, logs in $DUET_HOME/logs.

    Example: duet service install --embedded
    """
    from launchd.installer import install as run

    overrides = {"embedded": True} if embedded else {}
    raise typer.Exit(run(settings_or_exit(**overrides), dry_run=dry_run))


@service.command(name="status")
def service_status() -> None:
    """Say whether the services are installed and running. Exit code 1 when one is not.

    Example: duet service status
    """
    from launchd.installer import status as run

    raise typer.Exit(run(settings_or_exit()))


@service.command()
def uninstall(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed and run.")] = False,
) -> None:
    """Stop and remove the services. Data in $DUET_HOME stays.

    Example: duet service uninstall
    """
    from launchd.installer import uninstall as run

    raise typer.Exit(run(settings_or_exit(), dry_run=dry_run))


if __name__ == "__main__":
    app()
