"""Measure the embedded models as they are now, and write `models/embedded/README.md`.

    .venv/bin/python -m training.evaluate --eval FOLDER --bank FOLDER       # or `make evaluate`
    .venv/bin/python -m training.evaluate --only vision,review/frozen --eval FOLDER
    .venv/bin/python -m training.evaluate --render                          # only write the page again

Run it in the project's own environment (no torch), where the models answer as they do in the product. After each
measure the figures go to `models/embedded/figures.json`. Figures that are not measured this time are kept as long as
their weights are unchanged; the page never shows figures of other weights. The recogniser's sentences need espeak-ng;
`duet-tiny-vl` needs a word list and fonts (`training/vision/rendering.py` names the packages). A measure whose inputs
are missing is left out and named. `--eval` is a folder with `sentences.jsonl` and meetings as JSON files, as `duet
bench` reads them. Never train on it or use it to choose anything. Without `duet-tiny-vl` everything took four minutes
on two busy cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import models
from training.evaluate import document, page
from training.evaluate.document import Document

WORK: Final = Path("build/train/evaluate")
log = logging.getLogger("evaluate")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default="", metavar="NAME,…", help="measures to take: a group (recogniser) or one (recogniser/frozen)"
    )
    parser.add_argument("--eval", type=Path, metavar="FOLDER", help="folder of the frozen set")
    parser.add_argument("--bank", type=Path, metavar="FOLDER", default=Path("build/train/review/bank"))
    parser.add_argument("--work", type=Path, default=WORK, help="folder for intermediate files")
    parser.add_argument("--json", type=Path, default=models.EMBEDDED / "figures.json")
    parser.add_argument("--readme", type=Path, default=models.EMBEDDED / "README.md")
    parser.add_argument("--render", action="store_true", help="write the page from the figures without measuring")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.eval is not None and not options.eval.is_dir():
        parser.error(f"--eval: there is no folder {options.eval}")
    failed = False
    if not options.render:
        from training.evaluate.measures import MEASURES

        known = {*MEASURES, *(name.partition("/")[0] for name in MEASURES)}
        wanted = {name.strip() for name in options.only.split(",") if name.strip()} or known
        if unknown := wanted - known:
            parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
        failed = not measure(options, wanted)
    options.readme.write_text(page.render(document.read(options.json), page.read_prose()), encoding="utf-8")
    print(f"written: {options.json}, {options.readme}", flush=True)
    return 1 if failed else 0


def measure(options: argparse.Namespace, wanted: Collection[str]) -> bool:
    """Take the measures with these names or groups, and write each into the figures at once.

    Returns whether none failed. A measure without its inputs does not count as failed.
    """
    from training.evaluate.measures import MEASURES
    from training.evaluate.session import Inputs, Unmeasured, session

    found = opened(options.json)
    chosen = {name: one for name, one in MEASURES.items() if {name, name.partition("/")[0]} & set(wanted)}
    problems: dict[str, str] = {}
    failed = False
    with session(Inputs(options.work, options.eval, options.bank)) as running:
        for number, (name, one) in enumerate(chosen.items(), 1):
            print(f"[{number}/{len(chosen)}] {name}: {one.command}", flush=True)
            began = time.monotonic()
            if missing := [model for model in one.models if model not in found.models]:
                problems[name] = f"there is no {missing[0]}"
                continue
            try:
                result = one.run(running)
            except Unmeasured as problem:
                problems[name] = str(problem)
                continue
            except Exception as error:
                log.exception("%s failed", name)
                problems[name], failed = f"failed: {type(error).__name__}", True
                continue
            digests = {model: found.models[model].digest for model in one.models}
            found.measured[name] = document.Measured(digests, result.data, one.command, result.figures)
            document.write(options.json, found)
            print(f"    {page.headline(name, result.figures)} ({time.monotonic() - began:.0f} s)", flush=True)
    for name, problem in problems.items():
        kept = "; the figures of these weights are kept" if found.current(name) else ""
        print(f"not measured: {name}: {problem}{kept}", flush=True)
    return not failed


def opened(path: Path) -> Document:
    """The figures so far with the current models, without figures of models that changed or disappeared. Saves them."""
    measured = document.read(path).measured if path.exists() else {}
    found = Document(document.models_in(models.EMBEDDED), measured)
    found.measured = {name: one for name, one in measured.items() if found.current(name)}
    document.write(path, found)
    return found


if __name__ == "__main__":
    sys.exit(main())
