"""The three ports, as the routes ask for them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from engine.types import Models, Operators, Work


def _work(request: Request) -> Work:
    work: Work = request.app.state.work
    return work


def _models(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


def _operators(request: Request) -> Operators:
    operators: Operators = request.app.state.operators
    return operators


WorkDep = Annotated[Work, Depends(_work)]
ModelsDep = Annotated[Models, Depends(_models)]
OperatorsDep = Annotated[Operators, Depends(_operators)]


async def refreshed(operators: OperatorsDep) -> None:
    """The models are those that lie on the disk now."""
    await operators.refresh()
