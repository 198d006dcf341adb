"""What measures need besides the models: data, `duet bench`, and a running stack. The stack starts at its first use."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duet.settings import Settings, load_settings
from duet.testing.stack import Stack, running

LOG_LINES = 20


class Unmeasured(Exception):
    """An input of a measure is missing. The message says which one."""


class CommandFailed(Exception):
    """A command failed. The message ends with the last lines that it printed."""


@dataclass(frozen=True)
class Inputs:
    """`work` is a folder for intermediate files. `frozen` is a folder with `sentences.jsonl` and meetings as JSON files
    with `turns`. `bank` has the recogniser's mistakes that `training.review.bank` wrote."""

    work: Path
    frozen: Path | None
    bank: Path

    def sentences(self) -> Path:
        path = self._frozen() / "sentences.jsonl"
        if not path.is_file():
            raise Unmeasured(f"no {path.name} in {path.parent}")
        return path

    def meetings(self) -> list[Path]:
        """The frozen set's meetings, at least one. Raises `Unmeasured`."""
        found = sorted(self._frozen().glob("*.json"))
        if not found:
            raise Unmeasured(f"no meetings in {self.frozen}")
        return found

    def _frozen(self) -> Path:
        if self.frozen is None:
            raise Unmeasured("needs --eval, the folder of the frozen set")
        return self.frozen


@dataclass
class Session:
    """One run. `home` is the DUET_HOME of every process that it starts."""

    inputs: Inputs
    home: Path
    _cleanup: contextlib.ExitStack
    _stack: Stack | None = field(default=None)

    def stack(self) -> Stack:
        """The running services with the embedded models. Raises `StackFailed`."""
        if self._stack is None:
            self._stack = self._cleanup.enter_context(running(self.home))
        return self._stack

    def settings(self) -> Settings:
        """The settings of the running services."""
        return load_settings(self._variables(self.stack()))

    def bench(self, kind: str, manifests: Sequence[Path], *arguments: str, engine: bool = False) -> dict[str, Any]:
        """The result of `duet bench KIND --embedded`; with `engine`, beside the running services. Raises
        `CommandFailed`."""
        listed = [part for manifest in manifests for part in ("--manifest", str(manifest))]
        with tempfile.TemporaryDirectory(prefix="duet-evaluate-") as folder:
            command = ["duet.cli.main", "bench", kind, "--embedded", *listed, *arguments, "--out", folder]
            self.python(*command, variables=self._variables(self.stack() if engine else None))
            found: dict[str, Any] = json.loads((Path(folder) / f"{kind}.json").read_text(encoding="utf-8"))
        return found

    def python(self, *command: str, variables: dict[str, str] | None = None) -> str:
        """What `python -m COMMAND` prints. Raises `CommandFailed`."""
        inherited = {name: value for name, value in _environment().items() if not name.startswith("DUET_")}
        environment = inherited | (variables or self._variables(None))
        done = subprocess.run(
            [sys.executable, "-P", "-m", *command],
            capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-LOG_LINES:])
            raise CommandFailed(f"{' '.join(command)}: exit code {done.returncode}\n{last}")
        return done.stdout

    def _variables(self, stack: Stack | None) -> dict[str, str]:
        found = {"DUET_HOME": str(self.home)}
        if stack is not None:
            found["DUET_ENGINE__PORT"] = stack.engine_url.rpartition(":")[2]
        return found


@contextlib.contextmanager
def session(inputs: Inputs) -> Iterator[Session]:
    """A session. At the end it stops every process that it started."""
    with contextlib.ExitStack() as cleanup:
        folder = tempfile.TemporaryDirectory(prefix="duet-evaluate-", ignore_cleanup_errors=True)
        yield Session(inputs, Path(cleanup.enter_context(folder)), cleanup)


def _environment() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251 - handed to a child, not read
