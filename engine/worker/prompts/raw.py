"""A prompt's text and tokens: rendered from a conversation, or a raw prompt, which is continued as it is.

A raw text gets the tokens that its tokenizer puts around a text, BOS for instance, unless the request says otherwise. vLLM
(`add_special_tokens`, on by default for completions) and mlx-lm (`tokenizer.encode(prompt)`) do the same. A rendered
conversation gets none, because the chat template writes them. Token ids are taken as they are.
"""

from __future__ import annotations

from typing import Any

from duet.errors import ContextTooLong, InvalidRequest
from engine.types import GenerationRequest
from engine.worker.model import Loaded
from engine.worker.prompts.length import tokens_beyond
from engine.worker.prompts.template import context_of, render


def param_of(request: GenerationRequest) -> str:
    """The field that brought the prompt."""
    return "messages" if request.prompt is None else "prompt"


def text_of(loaded: Loaded, request: GenerationRequest) -> str:
    """The prompt's text. Raises `InvalidRequest` for a conversation that the template refuses, and for unknown token ids."""
    match request.prompt:
        case None:
            return render(loaded, request)
        case str(text):
            return text
        case ids:
            if outside := [token for token in ids if not 0 <= token < loaded.vocabulary]:
                message = f"token {outside[0]} is not in the vocabulary of {loaded.vocabulary}"
                raise InvalidRequest(message, param="prompt")
            return str(loaded.tokenizer.decode(list(ids), skip_special_tokens=False))


def encoded(loaded: Loaded, request: GenerationRequest, text: str) -> Any:
    """The tokens of `text` and their places in it (`tokenizers.Encoding`). Raises `ContextTooLong` for a text that is far too
    long for this model, without tokenising all of it."""
    limit = context_of(loaded)
    if beyond := tokens_beyond(loaded.tokenizer.backend_tokenizer, text, limit):
        message = f"the prompt has {beyond} tokens or more; this model's context is {limit}, the answer included"
        raise ContextTooLong(message, param=param_of(request))
    special = request.prompt is not None and request.add_special_tokens
    return loaded.tokenizer.backend_tokenizer.encode(text, add_special_tokens=special)
