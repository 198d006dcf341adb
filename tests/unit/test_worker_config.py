"""What a worker is told: from card and settings into one message, and back out of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from duet.settings import EngineSettings, Settings
from engine.cards import Card, CardError, read_card
from engine.kvstore.leases import Lease
from engine.pool.launcher import worker_config
from engine.worker_config import BatchLimits, ModelOptions, WorkerConfig

GB = 10**9
CARD = Card("m", roles=("chat",), bytes_on_disk=3 * GB, options=ModelOptions(kv_bits=8))


def told(card: Card = CARD, lease: Lease | None = None, **engine: object) -> WorkerConfig:
    settings = Settings(home=Path("home"), log_level="debug", engine=EngineSettings(**engine))  # type: ignore[arg-type]
    return worker_config(card, Path("models/m"), lease, settings, total_bytes=16 * GB, left_bytes=5 * GB)


def test_card_settings_and_lease_become_one_message() -> None:
    lease = Lease(1 << 20, directory=b"kv/f", disk_bytes=5, fingerprint="f")
    assert told(lease=lease, max_rows=3, prefill_chunk_tokens=64, wired_limit="auto") == WorkerConfig(
        model="m",
        path=b"models/m",
        role="chat",
        options=ModelOptions(kv_bits=8),
        batch=BatchLimits(max_rows=3, chunk_tokens=64),
        kv=lease,
        active_kv_bytes=4 * GB,
        wired_limit_bytes=3 * GB,
        log_level="debug",
    )


def test_the_role_is_the_card_s() -> None:
    assert told(replace(CARD, roles=("asr",))).role == "asr"
    assert told(replace(CARD, roles=("embedding",))).role == "embedding"
    assert told(replace(CARD, roles=("ocr", "vision"))).role == "chat"


def test_the_message_arrives_as_it_was_sent() -> None:
    config = told(lease=Lease(1, directory="kv/é".encode(), age_seconds=0.5))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=WorkerConfig) == config


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"model": ""}, "$.model"),
        ({"role": "king"}, "$.role"),
        ({"log_level": "loud"}, "$.log_level"),
        ({"batch": BatchLimits(chunk_tokens=0)}, "$.batch.chunk_tokens"),
        ({"batch": BatchLimits(max_rows=-1)}, "$.batch.max_rows"),
        ({"options": ModelOptions(kv_bits=5)}, "$.options.kv_bits"),  # type: ignore[arg-type]
        ({"options": ModelOptions(answer_format="x")}, "$.options.answer_format"),  # type: ignore[arg-type]
        ({"kv": Lease(-1)}, "$.kv.memory_bytes"),
        ({"kv": Lease(1, flush_seconds=-1.0)}, "$.kv.flush_seconds"),
        ({"active_kv_bytes": 0}, "$.active_kv_bytes"),
        ({"wired_limit_bytes": -1}, "$.wired_limit_bytes"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(wrong: dict[str, object], where: str) -> None:
    sent = msgspec.msgpack.encode(msgspec.structs.replace(told(), **wrong))
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.msgpack.decode(sent, type=WorkerConfig)
    assert where in str(refused.value)


def test_a_field_that_the_worker_does_not_know_is_refused() -> None:
    sent = msgspec.msgpack.encode({**msgspec.to_builtins(told(), builtin_types=(bytes,)), "draft_model": "small"})
    with pytest.raises(msgspec.ValidationError, match="draft_model"):
        msgspec.msgpack.decode(sent, type=WorkerConfig)


def test_options_are_keys_of_a_card(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('id = "a"\nkv_bits = 4\n')
    assert read_card(path).options == ModelOptions(kv_bits=4)
    path.write_text('id = "a"\nkv_bits = 5\n')
    with pytest.raises(CardError, match=r"a\.toml: .*kv_bits"):
        read_card(path)


def test_paths_that_are_not_utf_8_reach_the_worker_as_they_are(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    settings = Settings(home=tmp_path / name)
    sent = worker_config(
        CARD, settings.home / "m", Lease(1, directory=os.fsencode(settings.home / "kv")), settings,
        total_bytes=16 * GB, left_bytes=5 * GB,
    )  # fmt: skip
    heard = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=WorkerConfig)
    assert Path(os.fsdecode(heard.path)) == settings.home / "m"
    assert heard.kv is not None
    assert heard.kv.directory == os.fsencode(tmp_path) + b"/caf\xe9/kv"
