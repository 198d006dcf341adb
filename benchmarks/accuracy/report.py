"""Results on the terminal, as JSON and as a plot."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.accuracy.cer import Run
from benchmarks.accuracy.der import Diarization
from benchmarks.accuracy.figures import Figures
from benchmarks.accuracy.manifest import Manifest
from speech.metrics import DiarizationErrors
from speech.normalise import NORMALISER_VERSION

ROW, LEFT, WIDTH = 22, 260, 520


def cer_table(runs: Sequence[Run], group: str) -> Table:
    """`broken`: utterances whose numbers or negations were changed."""
    table = Table(
        title=f"{group}: {runs[0].groups[group].utterances} utterances", title_justify="left", box=SIMPLE_HEAD
    )
    for name in (
        "arm",
        "glossary",
        "CER",
        "95%",
        "change",
        "95%",
        "MER",
        "S/I/D",
        "recall",
        "precision",
        "+/-",
        "broken",
    ):
        table.add_column(name, justify="left" if name in ("arm", "glossary") else "right", no_wrap=True)
    base = runs[0].groups[group]
    for run in runs:
        found = run.groups[group]
        change = found.cer.rate - base.cer.rate
        table.add_row(
            run.arm, "" if run.arm == "none" else run.glossary, _percent(found.cer.rate), _range(found.cer_interval),
            "" if run.arm == "none" else f"{100 * change:+.2f}", "" if run.arm == "none" else _range(found.difference_interval),
            _percent(found.mer.rate), f"{found.cer.substitutions}/{found.cer.insertions}/{found.cer.deletions}",
            _percent(found.term_recall), _percent(found.term_precision), f"{found.better}/{found.worse}",
            str(found.protected_changed),
        )  # fmt: skip
    return table


def der_table(results: Sequence[Diarization]) -> Table:
    table = Table(title="diarization", title_justify="left", box=SIMPLE_HEAD)
    for name in ("meeting", "speakers", "DER", "missed", "false alarm", "confusion", "found / spoke"):
        table.add_column(name, justify="left" if name == "meeting" else "right", no_wrap=True)
    for known in (False, True):
        rows = [result for result in results if result.speakers_known is known]
        total = DiarizationErrors()
        for result in rows:
            total += result.errors
            table.add_row(result.meeting, _known(known), *_shares(result.errors), f"{result.found} / {result.speakers}")
        right = sum(result.found == result.speakers for result in rows)
        table.add_row("all", _known(known), *_shares(total), f"right in {right} of {len(rows)}")
    return table


def _known(known: bool) -> str:
    return "given" if known else "unknown"


def _shares(errors: DiarizationErrors) -> list[str]:
    total = errors.total or 1.0
    return [
        _percent(errors.rate),
        *(_percent(part / total) for part in (errors.missed, errors.false_alarm, errors.confusion)),
    ]


def document(manifest: Manifest, settings: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """What is needed to tell whether two results can be compared."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "duet": importlib.metadata.version("mlx-duet"),
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "normaliser": NORMALISER_VERSION,
        "manifests": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in manifest.files},
        "audio": hashlib.sha256("".join(sorted(_digests(manifest))).encode()).hexdigest(),
        "settings": settings,
        **result,
    }


def cer_result(manifest: Manifest, runs: Sequence[Run]) -> dict[str, Any]:
    texts = [
        {"id": utterance.id, "reference": utterance.text, **{f"{run.arm} {run.glossary}": run.texts[i] for run in runs}}
        for i, utterance in enumerate(manifest.utterances)
    ]
    arms = [
        {
            "arm": run.arm,
            "glossary": run.glossary,
            "groups": {name: _figures(found) for name, found in run.groups.items()},
        }
        for run in runs
    ]
    return {"arms": arms, "utterances": texts}


def der_result(results: Sequence[Diarization]) -> dict[str, Any]:
    return {"meetings": [{**asdict(result), "der": result.errors.rate} for result in results]}


def _figures(found: Figures) -> dict[str, Any]:
    return {
        **asdict(found),
        "cer": {**asdict(found.cer), "rate": found.cer.rate},
        "mer": {**asdict(found.mer), "rate": found.mer.rate},
    }


def plot(runs: Sequence[Run]) -> str:
    """The CER of every arm and group with its interval, as SVG."""
    rows = [(name, run) for name in runs[0].groups for run in runs if name in run.groups]
    top = max((run.groups[name].cer_interval[1] for name, run in rows), default=0.0) or 1.0
    height = ROW * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 80}" height="{height}"',
        '  font-family="sans-serif" font-size="12">',
        f'<text x="{LEFT}" y="14">character error rate, 95% bootstrap interval</text>',
    ]
    for i, (name, run) in enumerate(rows):
        found, y = run.groups[name], ROW * (i + 1) + 4
        low, high = (LEFT + WIDTH * value / top for value in found.cer_interval)
        width = WIDTH * found.cer.rate / top
        label = f"{name} · {run.arm}" + ("" if run.arm == "none" else f" · {run.glossary} glossary")
        shade = {"none": "#9aa5b1", "rule": "#7fb3d5", "lm": "#5b8c5a", "lm+rule": "#b08b4f"}[run.arm]
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{ROW - 8}" fill="{shade}"/>',
            f'<path d="M{low:.1f} {y + 7}H{high:.1f}M{low:.1f} {y + 3}v8M{high:.1f} {y + 3}v8" stroke="#222" fill="none"/>',
            f'<text x="{max(high, LEFT + width) + 6:.1f}" y="{y + 13}">{100 * found.cer.rate:.1f}%</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _digests(manifest: Manifest) -> set[str]:
    paths = {utterance.audio for utterance in manifest.utterances} | {meeting.audio for meeting in manifest.meetings}
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _commit() -> str | None:
    """The commit of a checkout; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.2f}%"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} … {100 * interval[1]:.1f}"
