"""Presets: the models that they choose fit beside each other on machines of that size, and settings win over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from duet.settings import EngineSettings, Settings
from engine.cards import CardError, read_card
from engine.catalogue import Catalogue
from engine.downloads import Downloads
from engine.pool.launcher import LEAST_ACTIVE_KV_BYTES, active_kv_bytes, wired_limit_bytes
from engine.pool.ledger import Admit, Entry, Limit, Refuse, Rules, decide
from engine.pool.slot import kv_bytes_for, wanted
from engine.presets import GIB, PRESETS, preset_for


def catalogue(tmp_path: Path, gibibytes: int, **engine: object) -> Catalogue:
    settings = Settings(home=tmp_path, engine=EngineSettings(**engine))  # type: ignore[arg-type]
    return Catalogue(settings, Downloads(tmp_path, "http://127.0.0.1:9"), memory_bytes=gibibytes * GIB)


@pytest.mark.parametrize("metal", [False, True], ids=["share", "working set"])
@pytest.mark.parametrize("gibibytes", [16, 32, 36, 48, 64, 128])
@pytest.mark.parametrize("role", ["chat", "reviewer", "vision", "ocr"])
def test_every_role_of_a_preset_can_be_loaded_while_the_resident_models_are_there(
    tmp_path: Path, gibibytes: int, role: str, metal: bool
) -> None:
    """Metal recommends two thirds of a Mac below 36 GB, and three quarters of a larger one."""
    cards = catalogue(tmp_path, gibibytes)
    preset = PRESETS[cards.preset]
    share = min(preset.share, 2 / 3 if gibibytes < 36 else 3 / 4) if metal else preset.share
    limit = Limit(round(gibibytes * GIB * share), "test", round(gibibytes * GIB * share))
    entries = [
        Entry(wanted(cards.resolve(name), 0).model, wanted(cards.resolve(name), 0).bytes, pinned=True, yields=True,
              gives_way=preset.asr_yields and name == "asr")
        for name in preset.resident
    ]  # fmt: skip
    card = cards.resolve(role)
    kv_bytes = kv_bytes_for(card, min(4 * GIB, gibibytes * GIB // 16), limit.ceiling_bytes)
    decision = decide(entries, wanted(card, kv_bytes), limit, Rules(15.0, preset.one_large), 1000.0)
    assert not isinstance(decision, Refuse)
    if gibibytes >= 36:
        assert decision == Admit(), "side by side"


def test_the_preset_can_be_set(tmp_path: Path) -> None:
    assert catalogue(tmp_path, 64).preset == preset_for(64 * GIB) == "64gb"
    small = catalogue(tmp_path, 64, preset="16gb")
    assert small.preset == "16gb"
    assert small.resolve("chat").id == "qwen3-14b"


@pytest.mark.parametrize(("value", "seconds"), [("60", 60.0), ("0", 0.0), ("-1", None), ("'long'", None)])
def test_a_card_can_say_how_long_its_model_stays(tmp_path: Path, value: str, seconds: float | None) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"id = 'x'\nttl_seconds = {value}\n")
    if seconds is None:
        with pytest.raises(CardError, match="ttl_seconds"):
            read_card(path)
    else:
        assert read_card(path).ttl_seconds == seconds


def test_the_wired_limit_is_off_the_weights_or_what_was_said() -> None:
    assert [wired_limit_bytes(wished, 700) for wished in ("off", "auto", 5)] == [0, 700, 5]


def test_kv_of_running_requests_is_bounded_by_what_the_model_leaves_of_the_limit() -> None:
    assert active_kv_bytes(4 * GIB, 10 * GIB) == 4 * GIB
    assert active_kv_bytes(4 * GIB, 3 * GIB) == 3 * GIB
    assert active_kv_bytes(4 * GIB, -GIB) == LEAST_ACTIVE_KV_BYTES
    assert active_kv_bytes(LEAST_ACTIVE_KV_BYTES // 2, 0) == LEAST_ACTIVE_KV_BYTES // 2, "it was said"
