"""Two folders never share a name, and a name never means the wrong one."""

from __future__ import annotations

import threading
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet.errors import Conflict, ModelNotFound
from engine.catalogue import Catalogue
from engine.folders.discovery import Place
from engine.folders.inspection import Inspection, inspect
from engine.naming import folded, meant, name_places
from tests.folders import write_folder
from tests.unit.test_engine_cards import catalogue, hub_snapshot

NFC, NFD = unicodedata.normalize("NFC", "modèle"), unicodedata.normalize("NFD", "modèle")


def models_in(root: Path, *names: str) -> Catalogue:
    for name in names:
        write_folder(root / "models" / name)
    return catalogue(root, hub=False)


@pytest.mark.parametrize(
    ("folders", "asked", "means"),
    [
        (("a/x",), "x", "a/x"),
        (("a/x",), "a/x", "a/x"),
        (("a/x", "b/x"), "a/x", "a/x"),
        (("a/x", "b/x"), "b/x", "b/x"),
        (("a/x", "b/x"), "B/X", "b/x"),
        (("x", "b/x"), "x", "x"),
        (("x", "b/x"), "b/x", "b/x"),
        (("X", "x"), "x", "x"),
        (("X", "x"), "X", "X"),
        (("Qwen", ), "qWEN", "Qwen"),
        ((NFC,), NFD, NFC),
        ((NFD,), NFC, NFD),
        (("with space",), "with space", "with space"),
        (("[1]",), "[1]", "[1]"),
        (("50%",), "50%", "50%"),
        (("..x",), "..x", None),
        ((".hidden",), ".hidden", None),
        (("n" * 255,), "n" * 255, "n" * 255),
        (("chat",), "models/chat", "chat"),
        (("o/embedding",), "o/embedding", "o/embedding"),
        (("somebody/qwen3-14b",), "somebody/qwen3-14b", "somebody/qwen3-14b"),
        (("mlx-community/Qwen3-14B-4bit",), "qwen3-14b", "mlx-community/Qwen3-14B-4bit"),
    ],
)  # fmt: skip
def test_what_a_name_means(tmp_path: Path, folders: tuple[str, ...], asked: str, means: str | None) -> None:
    found = models_in(tmp_path, *folders)
    if means is None:
        with pytest.raises(ModelNotFound):
            found.resolve(asked)
    else:
        assert found.resolve(asked).path == tmp_path / "models" / means


@pytest.mark.parametrize(
    ("folders", "asked"), [(("a/x", "b/x"), "x"), (("a/x", "b/X"), "x"), (("Ab", "aB"), "AB"), (("a/x", "A/x"), "x")]
)
def test_a_name_of_several_is_refused_and_names_them(tmp_path: Path, folders: tuple[str, ...], asked: str) -> None:
    with pytest.raises(Conflict) as refused:
        models_in(tmp_path, *folders).resolve(asked)
    assert refused.value.param == "model"
    assert all(name in refused.value.message for name in folders)


def test_a_folder_named_like_a_role_or_a_card_takes_neither(tmp_path: Path) -> None:
    write_folder(tmp_path / "models" / "asr")
    write_folder(tmp_path / "models" / "somebody" / "qwen3-vl-4b")
    write_folder(tmp_path / "models" / "qwen3-asr-0.6b")  # a chat model, whatever it is called
    found = catalogue(tmp_path)
    assert found.resolve("asr").roles == ("asr",)
    assert found.resolve("models/asr").roles == ("chat",)
    assert found.resolve("qwen3-vl-4b").path is None
    assert found.resolve("somebody/qwen3-vl-4b").path is not None
    assert found.resolve("qwen3-asr-0.6b").roles == ("asr",)


def test_two_model_dirs_with_one_name_are_two_models(tmp_path: Path) -> None:
    for root in ("first", "second"):
        write_folder(tmp_path / root / "x")
    settings = catalogue(tmp_path, hub=False)._settings
    engine = settings.engine.model_copy(update={"model_dirs": (tmp_path / "first", tmp_path / "second")})
    found = catalogue(tmp_path, hub=False)
    found._settings = settings.model_copy(update={"engine": engine})
    assert found.resolve("x").path == tmp_path / "first" / "x"
    assert found.resolve("second/x").path == tmp_path / "second" / "x"


def test_a_bad_reference_of_one_hub_model_leaves_the_others_alone(tmp_path: Path) -> None:
    hub_snapshot(tmp_path, "good/model")
    for repo, content in (("bad/bytes", b"\xff\xfe\0"), ("bad/way", b"../../../etc"), ("bad/long", b"a" * 5000)):
        hub_snapshot(tmp_path, repo)
        (tmp_path / "hub" / f"models--{repo.replace('/', '--')}" / "refs" / "main").write_bytes(content)
    hub_snapshot(tmp_path, "bad/folder")
    reference = tmp_path / "hub" / "models--bad--folder" / "refs" / "main"
    reference.unlink()
    reference.mkdir()
    assert {card.id for card in catalogue(tmp_path).known() if card.path} == {"good/model"}


NAMES = st.text(st.sampled_from("aAbßsé́é-. 1"), min_size=1, max_size=4).filter(lambda it: "/" not in it)


@given(st.lists(st.one_of(NAMES, st.tuples(NAMES, NAMES).map("/".join)), unique=True, max_size=12))
def test_every_place_has_an_id_of_its_own_that_means_it(names: list[str]) -> None:
    places = [Place(Path("/m"), name, Path("/m") / name) for name in names]
    named = name_places(places, {"a", "b"})
    ids = [own[0] for own in named.values()]
    assert len(set(ids)) == len(places)
    assert not {folded(one) for one in ids} & {"a", "b"}
    by_id = {own[0]: own for own in named.values()}
    for own in named.values():
        assert meant(own[0], by_id) == [own[0]]


async def test_the_first_look_shows_what_it_has_and_a_name_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk: each folder takes half a second. Nothing is looked at on the event loop meanwhile."""
    loop_thread = threading.get_ident()

    def slow(folder: Path, name: str) -> Inspection:
        assert threading.get_ident() != loop_thread
        time.sleep(0.5)
        return inspect(folder, name)

    monkeypatch.setattr("engine.catalogue.inspect", slow)
    monkeypatch.setattr("engine.catalogue.PATIENCE_SECONDS", 0.1)
    for name in "abcdef":
        write_folder(tmp_path / "models" / name)
    found = catalogue(tmp_path, hub=False)
    await found.refresh()
    assert found.known() == []
    assert (await found.find("a")).id == "a"
    assert 0 < len(found.known()) < 6
    assert (await found.find("f")).id == "f"
    assert len(found.known()) == 6
