"""Broken folders behind the real gateway: each is named, none harms another, and no client is blamed."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.fakes.engine_service import EngineService, engine_service, model_folder
from tests.folders import write_folder
from tests.odd_folders import BAD, ODD


def name_of(case: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in case)


async def refused(engine: EngineService, model: str) -> str:
    answer = await engine.chat("hello", model)
    assert answer.status_code == 503, (model, answer.text)
    error = answer.json()["error"]
    assert error["code"] == "model_unusable"
    assert error["param"] == "model"
    assert "retry_after" not in error
    assert error["message"].startswith(f"{model} cannot be used: ")
    return str(error["message"])


async def test_every_broken_folder_is_named_and_a_whole_one_beside_them_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = tmp_path / "models"
    model_folder(models, "talker")
    for case, (mutate, _) in BAD.items():
        mutate(write_folder(models / name_of(case)))
    async with engine_service(tmp_path, models) as engine:
        for _ in range(2):
            assert (await engine.client.get("/ready")).json() == {"status": "ready", "models": 1}
            assert (await engine.chat("hello")).status_code == 200
        listed = {one["id"]: one["duet"] for one in (await engine.client.get("/v1/models")).json()["data"]}
        placed = {one["id"]: one for one in (await engine.client.get("/v1/admin/models")).json()["models"]}
        assert [name for name, one in listed.items() if one["state"] != "unusable"] == ["talker"]
        logged = caplog.text
        for case, (_, says) in BAD.items():
            name = name_of(case)
            assert listed[name]["state"] == placed[name]["state"] == "unusable"
            assert listed[name]["roles"] == []
            assert says in listed[name]["problem"] == placed[name]["problem"]
            assert says in await refused(engine, name)
            assert logged.count(f"{models / name}: ") == 1
        for path in ("load", "stats"):
            call = engine.client.get if path == "stats" else engine.client.post
            answer = await call(f"/v1/admin/models/no-config/{path}")
            assert answer.status_code == (200 if path == "stats" else 503)
        assert (await engine.client.get("/v1/models/no-config")).json()["duet"]["problem"].startswith("config.json")


async def test_odd_folders_answer(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for case, (mutate, roles) in ODD.items():
        if roles[0] == "chat":
            mutate(model_folder(models / name_of(case), "m"))
    async with engine_service(tmp_path, models, memory_limit_bytes=1 << 42) as engine:
        data = (await engine.client.get("/v1/models")).json()["data"]
        assert len(data) == sum(roles[0] == "chat" for _, roles in ODD.values())
        assert {one["duet"]["problem"] for one in data} == {None}


async def test_folders_come_change_and_go_while_requests_run(tmp_path: Path) -> None:
    models = tmp_path / "models"
    model_folder(models, "talker")
    async with engine_service(tmp_path, models) as engine:
        assert (await engine.chat("hello", "late")).status_code == 404
        folder = model_folder(models, "late")
        assert (await engine.chat("hello", "late")).status_code == 200
        assert (await engine.client.post("/v1/admin/models/late/unload")).status_code == 200
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-1])
        await asyncio.sleep(2.1)
        assert "model.safetensors has 511 bytes" in await refused(engine, "late")
        (folder / "model.safetensors").write_bytes(whole)
        await asyncio.sleep(2.1)
        assert (await engine.chat("hello", "late")).status_code == 200
        await engine.client.post("/v1/admin/models/late/unload")
        shutil.rmtree(folder)
        await asyncio.sleep(2.1)
        assert (await engine.chat("hello", "late")).status_code == 404
        assert (await engine.chat("hello")).status_code == 200


async def test_two_owners_of_a_name_are_two_models(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for owner in ("alpha", "beta"):
        model_folder(models / owner, "twin")
    async with engine_service(tmp_path, models) as engine:
        for model in ("alpha/twin", "beta/twin"):
            answer = await engine.chat("hello", model)
            assert (answer.status_code, answer.json()["model"]) == (200, model)
        answer = await engine.chat("hello", "twin")
        assert answer.status_code == 409
        assert "alpha/twin, beta/twin" in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == "model"


async def test_thousands_of_folders_are_found_beside_the_event_loop(tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = model_folder(models, "talker")
    for number in range(1500):
        folder = models / f"owner{number % 30}" / f"m{number}"
        folder.mkdir(parents=True)
        for file in first.iterdir():
            os.link(file, folder / file.name)
    async with engine_service(tmp_path, models) as engine:
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0.01)
                longest = max(longest, time.perf_counter() - began - 0.01)

        async with asyncio.timeout(60):
            while len((await engine.client.get("/v1/models")).json()["data"]) < 1501:
                await asyncio.sleep(0.1)
        watching = asyncio.create_task(watch())
        await asyncio.sleep(2.1)
        began = time.perf_counter()
        assert (await engine.chat("hello", "m777")).status_code == 200
        took = time.perf_counter() - began
        watching.cancel()
        assert took < 20
        assert longest < 2
