"""Token ids become text."""

from __future__ import annotations

import codecs
from typing import Any

from tokenizers.decoders import DecodeStream

from engine.types import TokenLogprob


class Detokeniser:
    """The text of one answer, token by token: at a constant cost, in whole characters, without special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token: int) -> str:
        """The text that is complete with this token: "" while a character is not."""
        try:
            return self._stream.step(self._backend, token) or ""
        except Exception as error:  # the library raises nothing more exact
            # Byte tokens that are not UTF-8 change text that was already shown: decoding starts anew with this token.
            if "prefix" not in str(error):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._backend, token) or ""


class TokenText:
    """Text and exact bytes of single tokens, for log-probabilities."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.get_added_vocab())
        # In a byte-level vocabulary these characters stand for bytes, in a sentencepiece one for themselves.
        self._bytes = _byte_level_alphabet() if _is_byte_level(tokenizer) else None

    def bytes_of(self, token: int) -> bytes:
        """The exact bytes of a token; none for an id that the tokenizer does not have."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if piece in self._added:
            return str(piece).encode()
        if self._bytes is not None and all(char in self._bytes for char in piece):
            return bytes(self._bytes[char] for char in piece)
        if len(piece) == 6 and piece.startswith("<0x"):  # a byte of a sentencepiece vocabulary
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("▁", " ").encode()

    def logprob(self, token: int, value: float) -> TokenLogprob:
        data = self.bytes_of(token)
        return TokenLogprob(data.decode(errors="replace"), data, value)


class RawText:
    """All that the tokens of one answer say, special tokens included, from their exact bytes.

    An ASCII character comes with its own token, even beside a character that is incomplete, so a marker in ASCII is complete
    with its last token. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, tokens: TokenText) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token: int) -> str:
        return self._decoder.decode(self._tokens.bytes_of(token))


def _is_byte_level(tokenizer: Any) -> bool:
    """Read off the tokenizer's decoder, whose state is the JSON of tokenizer.json."""
    decoder = tokenizer.backend_tokenizer.decoder
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def _byte_level_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte. GPT-2's table: printable bytes are written as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
