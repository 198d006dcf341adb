"""The ports between the API and the pool. Every method raises `duet.errors.DuetError`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.types.events import Events
from engine.types.models import ModelInfo, Placement, PoolStatus
from engine.types.reports import KvStatus
from engine.types.requests import Request


class Work(Protocol):
    """Runs requests."""

    def run(self, request: Request) -> Events:
        """The events of one request. Loads the model if need be. Closing the generator cancels the request in any state.

        It may raise before the first event; then there is no other event.
        """
        ...


class Models(Protocol):
    """Knows which models there are."""

    async def list(self) -> Sequence[ModelInfo]:
        """Models on this machine, then those that can be fetched."""
        ...

    async def resolve(self, name: str) -> ModelInfo:
        """The model that `name` (id, alias or role) means. Raises `ModelNotFound` with the ids there are, and `Conflict` for a
        name that several have."""
        ...

    def is_here(self, model: str) -> bool:
        """Whether the model of that id is on this machine. Does not look at the disk."""
        ...

    def progress(self, model: str) -> str:
        """What a request for this model waits for, in words ("loading …"); "" when it waits for nothing."""
        ...


class Operators(Protocol):
    """Shows an operator the machine, and does what the operator decides."""

    async def refresh(self) -> None:
        """Look at the models on the disk, unless that was done a moment ago."""
        ...

    def pool(self) -> PoolStatus:
        """Memory, and every model that is here or was asked for."""
        ...

    def placement(self, name: str) -> Placement:
        """One model's place. Raises `ModelNotFound`."""
        ...

    async def load(self, name: str) -> Placement:
        """Load a model as a request would. Returns when it is loaded. Raises as `Work.run` does before its first event."""
        ...

    async def unload(self, name: str, *, force: bool = False) -> Placement:
        """Unload a model, pinned or not. Returns when its memory is back. Raises `Conflict` while it has requests, unless
        `force`: then they fail."""
        ...

    def pin(self, name: str, pinned: bool) -> Placement:
        """Let a model stay once it is loaded, or let it go like any other."""
        ...

    async def kv(self) -> KvStatus:
        """All KV of this machine, in workers and on disk."""
        ...

    async def clear_kv(self, model: str | None) -> int:
        """Forget the KV of a model or of all. Returns how many entries lay on disk without a worker. Raises `ModelNotFound`."""
        ...


class Backend(Work, Models, Operators, Protocol):
    """All three ports: what the application is made with."""
