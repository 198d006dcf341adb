"""A model's tokenizer as llguidance reads it."""

from __future__ import annotations

from llguidance import LLTokenizer, TokenizerWrapper

from engine.worker.answers.detokenise import TokenText
from engine.worker.model import Loaded


def wrapped_tokenizer(loaded: Loaded) -> LLTokenizer:
    """Raises ValueError for a model that has no token that ends an answer.

    The tokenizer is given as bytes of tokens rather than as tokenizer.json: a quarter of the time and memory at a vocabulary
    of 150,000.
    """
    return LLTokenizer(TokenizerWrapper(_Vocabulary(loaded)), eos_token=_end_tokens(loaded))


class _Vocabulary:
    """What `TokenizerWrapper` asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, loaded: Loaded) -> None:
        self._backend = loaded.tokenizer.backend_tokenizer
        text, ends = TokenText(loaded.tokenizer), _end_tokens(loaded)
        size = max(self._backend.get_vocab_size(with_added_tokens=True), *(token + 1 for token in ends))
        self.tokens = [text.bytes_of(token) for token in range(size)]
        self.eos_token_id = ends[0]
        special = {token for token, added in loaded.tokenizer.added_tokens_decoder.items() if added.special}
        self.special_token_ids = sorted(token for token in special | set(ends) if token < size)

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of text that a form demands."""
        encoded = self._backend.encode(text.decode(errors="replace"), add_special_tokens=False)
        return list(encoded.ids)


def _end_tokens(loaded: Loaded) -> list[int]:
    found = sorted(token for token in loaded.eos_ids if loaded.tokenizer.convert_ids_to_tokens(token) is not None)
    if not found:
        raise ValueError("the model has no token that ends an answer")
    return found
