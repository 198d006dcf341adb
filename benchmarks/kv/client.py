"""A client that measures: it sends streamed chat requests one after the other and times each until its first text."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from benchmarks.kv.servers import Budget, Server, label

WORDS = (
    "return", "value", "index", "string", "object", "module", "method", "class", "file", "name", "path", "error", "write",
    "read", "line", "buffer", "thread", "queue", "socket", "number", "list", "result", "option", "default", "parser",
    "format", "token", "source", "target", "table", "field", "level", "state", "event", "handler", "request",
)  # fmt: skip
WARM_UP_TOKENS = 8

Messages = list[dict[str, str]]


class RequestFailed(Exception):
    """The server answered with an error, or with no text."""


@dataclass(frozen=True)
class Answer:
    """`first_text_seconds` runs from sending the request to the first event with text, reasoning or answer. `logprobs`
    has one value per token if they were requested."""

    text: str
    first_text_seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    logprobs: tuple[float, ...] = ()


class Client:
    """The client of one server. It keeps its connection, as agents do, and reconnects after a restart."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._http = self._connected()

    def _connected(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.server.recipe.key}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=300.0, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def warm_up(self) -> None:
        """Load the model and run its kernels before anything is measured."""
        for text in ("hello", "hello again, with a few more words than before"):
            self.ask([message("user", text)], max_tokens=WARM_UP_TOKENS)

    def restart(self) -> None:
        """Stop the server, start it again in the same home, and warm it up."""
        self.close()
        self.server.restart()
        self._http = self._connected()
        self.warm_up()

    def ask(self, messages: Messages, *, max_tokens: int, logprobs: bool = False) -> Answer:
        """Send one greedy streamed request. Raises `RequestFailed`."""
        body = {
            "model": self.server.recipe.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0.0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if logprobs:
            body["logprobs"] = True
        texts: list[str] = []
        found: list[float] = []
        usage: Mapping[str, Any] = {}
        first = 0.0
        begun = time.perf_counter()
        with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RequestFailed(f"{self.server.name}: {answer.status_code} {answer.read()[:300]!r}")
            for line in answer.iter_lines():
                event = read_event(line)
                if event is None:
                    continue
                if event.get("error"):
                    raise RequestFailed(f"{self.server.name}: {event['error']}")
                usage = event.get("usage") or usage
                if text := event_text(event):
                    first = first or time.perf_counter() - begun
                    texts.append(text)
                found += event_logprobs(event)
        if not texts or not usage:
            raise RequestFailed(f"{self.server.name}: {len(texts)} events with text, usage {dict(usage)}")
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        return Answer(
            "".join(texts),
            first,
            usage.get("prompt_tokens") or usage["input_tokens"],
            details.get("cached_tokens") or 0,
            usage.get("completion_tokens") or usage.get("output_tokens") or len(texts),
            tuple(found),
        )

    def cache_report(self) -> dict[str, Any] | None:
        """The engine's own report about its cache; None for servers without that route."""
        answer = self._http.get("/v1/admin/kv")
        return answer.json() if answer.status_code == 200 else None


@contextlib.contextmanager
def side_by_side(
    names: Sequence[str], checkpoint: Path, budget: Budget, *, peers: Path, core: int | None
) -> Iterator[dict[str, Client]]:
    """Clients of servers that are all running, warm and empty. At the end, and after SIGTERM, their homes are deleted."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with contextlib.ExitStack() as cleanup:
        root = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="duet-kv-", ignore_cleanup_errors=True)))
        found = {}
        for name in names:
            server = cleanup.enter_context(Server(name, root / label(name), checkpoint, budget, peers, core))
            found[name] = cleanup.enter_context(contextlib.closing(Client(server)))
            found[name].warm_up()
        yield found


def read_event(line: str) -> dict[str, Any] | None:
    """The JSON object in one line of server-sent events; None for comments, blank lines and the end of the stream."""
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    return None if data in ("", "[DONE]") else json.loads(data)


def event_text(event: Mapping[str, Any]) -> str:
    """The text of an event, reasoning or answer. It is empty in the event that only names the role."""
    deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
    return "".join(
        delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or "" for delta in deltas
    )


def event_logprobs(event: Mapping[str, Any]) -> list[float]:
    """The natural log-probabilities of an event's tokens; empty if it has none."""
    found = [(choice.get("logprobs") or {}).get("content") or () for choice in event.get("choices") or ()]
    return [token["logprob"] for tokens in found for token in tokens]


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


class Texts:
    """Random words, counted in tokens of the checkpoint. The same seed gives the same text."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def rendered(self, messages: Messages) -> int:
        """Number of tokens of rendered messages, without the header that asks for an answer."""
        return self.count("".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages))

    def make(self, tokens: int, seed: str) -> str:
        """A text of `tokens` tokens. It begins with its seed, so two texts share no prefix."""
        draw = random.Random(seed)
        words = f"{seed} " + " ".join(draw.choice(WORDS) for _ in range(tokens))
        ids = self._tokenizer.encode(words, add_special_tokens=False).ids[:tokens]
        return str(self._tokenizer.decode(ids))
