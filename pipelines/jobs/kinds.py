"""What a kind of job is to the worker: a name, and its stages in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from duet.settings import Settings
from pipelines.meeting.job import JobFolder


class RunStage(Protocol):
    """One stage of a job: given the artifact keys of the stages before it by their names, it returns its own.

    `worker_died`: the worker that began this stage before died in it.
    """

    async def __call__(
        self, settings: Settings, folder: JobFolder, done: dict[str, str], *, worker_died: bool
    ) -> str: ...


@dataclass(frozen=True)
class Kind:
    """A workflow `name` whose steps are `name.STAGE`, in the order of `stages`.

    The store knows a begun job by these names and this order. Renaming or moving a stage strands the jobs that run.
    """

    name: str
    stages: Mapping[str, RunStage]
