"""Which models there are, and which one a name means."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import models
from duet.errors import ModelNotFound
from duet.settings import EngineSettings, Settings
from engine.cards import CardError, read_card
from engine.catalogue import Catalogue
from engine.downloads import Downloads
from engine.folders.inspection import inspect
from engine.naming import is_repo_id
from engine.presets import preset_for
from engine.types import SamplingParams
from tests.folders import write_folder

GIB = 1 << 30


def put(folder: Path, config: dict[str, Any] | None = None, *extra: str) -> Path:
    write_folder(folder, config)
    for name in extra:
        (folder / name).write_text("{}")
    return folder


def catalogue(
    tmp_path: Path, *, memory_gib: int = 32, hub: bool = True, embedded: bool = False, **engine: Any
) -> Catalogue:
    settings = Settings(
        home=tmp_path, embedded=embedded, engine=EngineSettings(model_dirs=(tmp_path / "models",), hub=hub, **engine)
    )
    return Catalogue(settings, Downloads(tmp_path / "hub", "http://127.0.0.1:9"), memory_bytes=memory_gib * GIB)


def hub_snapshot(tmp_path: Path, repo: str) -> Path:
    root = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    return put(root / "snapshots" / "abc")


@pytest.mark.parametrize("path", sorted([*models.CARDS.glob("*.toml"), *models.EMBEDDED.glob("*.toml")]))
def test_every_card_of_the_package_is_valid_and_named_as_its_file(path: Path) -> None:
    card = read_card(path)
    assert card.id == path.stem
    assert card.description
    assert card.repo is None or is_repo_id(card.repo)
    assert SamplingParams(**card.defaults)  # type: ignore[arg-type]


def test_no_name_means_two_cards() -> None:
    names = [name.casefold() for path in models.CARDS.glob("*.toml") for name in read_card(path).names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("memory_gib", [16, 32, 64])
@pytest.mark.parametrize("role", ["chat", "reviewer", "vision", "ocr", "embedding", "asr"])
def test_every_preset_has_exactly_one_card_for_every_role(memory_gib: int, role: str) -> None:
    cards = [read_card(path) for path in models.CARDS.glob("*.toml")]
    preferred = [card.id for card in cards if role in card.presets.get(preset_for(memory_gib * GIB), ())]
    assert len(preferred) == 1


@pytest.mark.parametrize(
    "text", ['id = "a"\nrolls = []', 'id = "a"\nroles = ["king"]', 'id = "a"\n[sampling]\nheat = 1', "id = "]
)
def test_a_wrong_card_is_an_error_that_names_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(CardError, match=r"a\.toml"):
        read_card(path)


@pytest.mark.parametrize(
    ("name", "config", "extra", "roles"),
    [
        ("plain", {"model_type": "qwen3"}, (), ("chat",)),
        ("seeing", {"model_type": "qwen3_vl", "vision_config": {"depth": 1}}, (), ("chat", "vision")),
        ("My-OCR", {"model_type": "glm_ocr", "vision_config": {}}, (), ("ocr", "vision")),
        ("bert", {"model_type": "bert"}, (), ("embedding",)),
        ("Qwen3-Embedding-0.6B", {"model_type": "qwen3"}, (), ("embedding",)),
        ("sentences", {"model_type": "qwen3"}, ("modules.json",), ("embedding",)),
        ("asr", {"model_type": "qwen3_asr"}, (), ("asr",)),
        ("strange", [], (), ()),
    ],
)
def test_what_a_folder_can_do(
    tmp_path: Path, name: str, config: Any, extra: tuple[str, ...], roles: tuple[str, ...]
) -> None:
    assert inspect(put(tmp_path / name, config, *extra)).roles == roles


def test_a_folder_that_cannot_be_used_is_listed_with_its_problem_and_has_no_role(tmp_path: Path) -> None:
    empty = put(tmp_path / "models" / "empty")
    (empty / "model.safetensors").unlink()
    (put(tmp_path / "models" / "broken") / "config.json").write_text("{")
    found = {card.id: card for card in catalogue(tmp_path, hub=False).known()}
    assert found.keys() == {"empty", "broken"}
    assert not any(card.roles for card in found.values())
    assert "has no *.safetensors" in str(found["empty"].problem)
    assert "config.json is no JSON" in str(found["broken"].problem)


def test_folders_are_found_one_and_two_levels_deep(tmp_path: Path) -> None:
    put(tmp_path / "models" / "near")
    put(tmp_path / "models" / "owner" / "far")
    put(tmp_path / "models" / "a" / "b" / "too-far")
    assert {card.id for card in catalogue(tmp_path, hub=False).known()} == {"near", "far"}


async def test_a_new_folder_is_found_at_once_and_a_removed_one_is_forgotten(tmp_path: Path) -> None:
    found = catalogue(tmp_path, hub=False)
    with pytest.raises(ModelNotFound):
        await found.find("fresh")
    folder = put(tmp_path / "models" / "fresh")
    assert (await found.find("fresh")).path == folder
    shutil.rmtree(folder)
    with pytest.raises(ModelNotFound):  # asking for another name looks again
        await found.find("other")
    with pytest.raises(ModelNotFound):
        found.resolve("fresh")


def test_a_models_id_is_the_same_before_and_after_it_was_fetched(tmp_path: Path) -> None:
    before = catalogue(tmp_path).resolve("mlx-community/Qwen3-14B-4bit")
    assert (before.id, before.path) == ("qwen3-14b", None)
    hub_snapshot(tmp_path, "mlx-community/Qwen3-14B-4bit")
    found = catalogue(tmp_path)
    assert found.resolve("qwen3-14b").path is not None
    assert {found.resolve(name).id for name in ("Qwen3-14B-4bit", "mlx-community/qwen3-14b-4bit")} == {"qwen3-14b"}


def test_a_snapshot_without_a_card_is_known_by_its_repo(tmp_path: Path) -> None:
    hub_snapshot(tmp_path, "somebody/something")
    assert catalogue(tmp_path).resolve("somebody/something").roles == ("chat",)


def test_the_presets_choose_by_memory(tmp_path: Path) -> None:
    chosen = {gib: catalogue(tmp_path, memory_gib=gib).resolve("chat").id for gib in (16, 32, 64)}
    assert chosen == {16: "qwen3-14b", 32: "qwen3.5-35b-a3b", 64: "qwen3.5-35b-a3b"}
    assert catalogue(tmp_path, memory_gib=16).resolve("reviewer").id == "qwen3-14b"
    assert catalogue(tmp_path, memory_gib=32).resolve("reviewer").id == "gemma-4-26b"


def test_a_model_that_is_here_goes_before_a_better_one_that_is_not(tmp_path: Path) -> None:
    put(tmp_path / "models" / "mine")
    assert catalogue(tmp_path).resolve("chat").id == "mine"
    assert catalogue(tmp_path).resolve("completions").id == "mine"
    assert catalogue(tmp_path).resolve("embedding").id == "qwen3-embedding-0.6b"


def test_the_default_chat_model_can_be_set_and_cannot_name_itself(tmp_path: Path) -> None:
    put(tmp_path / "models" / "first")
    put(tmp_path / "models" / "second")
    assert catalogue(tmp_path, default_chat_model="second").resolve("chat").id == "second"
    assert catalogue(tmp_path, default_chat_model="chat").resolve("chat").id == "first"


def test_embedded_models_take_every_role_they_can_and_nothing_is_fetched_for_the_others(tmp_path: Path) -> None:
    put(tmp_path / "models" / "mine")
    found = catalogue(tmp_path, embedded=True)
    assert found.resolve("chat").id == "duet-tiny-chat"
    assert found.resolve("reviewer").id == "duet-tiny-chat"
    assert found.resolve("embedding").id == "duet-tiny-embed"
    assert found.resolve("vision").id == found.resolve("ocr").id == "duet-tiny-vl"
    assert found.resolve("mine").id == "mine"
    with pytest.raises(ModelNotFound):
        found.resolve("asr")


def test_without_the_hub_only_what_is_here_is_known(tmp_path: Path) -> None:
    found = catalogue(tmp_path, hub=False)
    assert found.known() == []
    for name in ("qwen3-14b", "owner/name", "chat"):
        with pytest.raises(ModelNotFound, match="none is on this machine yet"):
            found.resolve(name)


@pytest.mark.parametrize("name", ["a/b/c", "../etc/passwd", "a/..", "/b", "a/", "a b/c", "a/" + "b" * 96])
def test_what_is_no_repo_id(name: str) -> None:
    assert not is_repo_id(name)
