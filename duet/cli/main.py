"""The `duet` command: joins the groups of verbs, in the order in which `duet --help` shows them."""

from __future__ import annotations

import typer

from duet.cli.groups import bench, kv, models, service, speech, stack

app = typer.Typer(
    help="Duet: a local AI stack. An OpenAI-compatible engine and a speech router with meetings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for verb in (
    stack.up, stack.status, stack.key, stack.config, speech.transcribe, speech.meeting, stack.repair, stack.version,
):  # fmt: skip
    app.command()(verb)
app.add_typer(service.app, name="service")
app.add_typer(bench.app, name="bench")
app.add_typer(kv.app, name="kv")
app.add_typer(models.app, name="models")

if __name__ == "__main__":
    app()
