"""The text of tokens one by one, also where their bytes are not UTF-8."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models

from engine.worker.answers.detokenise import Detokeniser

BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
LETTERS = {letter: 256 + i for i, letter in enumerate("abc")}


@pytest.fixture
def detokeniser() -> Detokeniser:
    """Its vocabulary has a token for each byte, as those of sentencepiece have."""
    tokenizer = Tokenizer(models.BPE({**BYTES, **LETTERS}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return Detokeniser(SimpleNamespace(backend_tokenizer=tokenizer))


def test_bytes_of_one_character_are_shown_together(detokeniser: Detokeniser) -> None:
    shown = [detokeniser.step(token) for token in (LETTERS["a"], 0xC3, 0xA9, LETTERS["b"])]
    assert "".join(text or "" for text in shown) == "a\u00e9b"


def test_a_byte_that_is_no_utf8_does_not_end_the_text(detokeniser: Detokeniser) -> None:
    shown = [detokeniser.step(token) for token in (0xC3, 0xA9, 0xFF, LETTERS["a"], LETTERS["b"], LETTERS["c"])]
    assert "".join(text or "" for text in shown).startswith("\u00e9")
    assert "".join(text or "" for text in shown).endswith("abc")
