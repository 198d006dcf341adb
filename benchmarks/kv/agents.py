"""Measure what agents gain from a server's cache and what it costs: shared prompts, chats, and bytes written to disk.

    make bench-kv        (python -m benchmarks.kv.agents [--parts shares,chat,writes])

`shares`  Requests share a system message of about 1,000 tokens and differ in the user message. How much of the system
          message is cached on the second request? Then the same text begins a user message and the rest of that message
          differs. How much of the text is cached on the third request? Both are measured again after a restart. The
          lowest share of `--sets` fresh texts counts.
`chat`    A chat of ten turns; the server restarts before the sixth. For each turn it compares the recomputed tokens
          (prompt minus cached) with the turn's new tokens: the previous answer, the new message and the template's
          tokens around them.
`writes`  An agent's session of 50 turns, on one checkpoint with state layers (`hybrid`). It divides the bytes written
          below the server's cache folder, and those written by its processes, by the session's unique bytes: the keys
          and values of the final tokens, and one state. Only servers that keep prompts on disk are measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.kv.checkpoints import CONFIGS, checkpoint, state_bytes, token_bytes
from benchmarks.kv.client import Answer, Client, Messages, Texts, message, side_by_side
from benchmarks.kv.disk import WriteLedger, process_written_bytes
from benchmarks.kv.report import parser, table, write
from benchmarks.kv.servers import ROOMY

SHARE_GOAL, WRITES_GOAL = 0.95, 3.0
BLOCK_TOKENS, TAIL_TOKENS, ANSWER_TOKENS = 1000, 30, 16
CHAT_TURNS, CHAT_RESTART, CHAT_SYSTEM_TOKENS, CHAT_MESSAGE_TOKENS, CHAT_ANSWER_TOKENS = 10, 5, 300, 80, 48
SESSION_CHECKPOINT, SESSION_MESSAGE_TOKENS, SESSION_ANSWER_TOKENS = "hybrid", 60, 24
SETTLE_SECONDS = 2.0
"""Time for writes in the background, before the processes' writes are counted and the server stops."""

Chat = list[dict[str, int]]
"""Each turn's `prompt_tokens`, `cached_tokens`, `last_turn_tokens` and `recomputed_tokens`."""


def main() -> int:
    options = parser(__doc__, "kv-agents.json", "nano,hybrid")
    options.add_argument("--parts", default="shares,chat,writes", help="parts to measure, separated by commas")
    options.add_argument("--sets", type=int, default=2, help="number of fresh texts in `shares`")
    options.add_argument("--turns", type=int, default=50, help="number of turns of the session in `writes`")
    arguments = options.parse_args()
    parts, begun = arguments.parts.split(","), time.monotonic()
    found: dict[str, Any] = {}
    for name in arguments.checkpoints if {"shares", "chat"} & set(parts) else ():
        found[name] = measure(name, parts, arguments)
        print(f"\n{name}\n{shown(found[name])}")
    written = {}
    if "writes" in parts:
        written = {SESSION_CHECKPOINT: session_writes(SESSION_CHECKPOINT, arguments)}
        print(f"\n{SESSION_CHECKPOINT}, {arguments.turns} turns (goal: {WRITES_GOAL})\n{shown_writes(written)}")
    write(arguments.json, arguments, begun, {"checkpoints": found, "writes": written})
    return 0


def measure(name: str, parts: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure `shares` and `chat` on one checkpoint. Returns each server's options and figures."""
    folder = checkpoint(name)
    texts, stamp = Texts(folder), f"{time.time_ns():x}"
    found: dict[str, Any] = {}
    with side_by_side(arguments.servers, folder, ROOMY, peers=arguments.peers, core=arguments.core) as clients:
        for server, client in clients.items():
            found[server] = {"options": dict(client.server.recipe.options)}
            if "shares" in parts:
                found[server]["shares"] = shares(client, texts, stamp, arguments.sets)
            if "chat" in parts:
                turns = chat(client, texts, stamp)
                found[server]["chat"] = {"turns": turns, "worst_excess_tokens": worst_excess(turns)}
            print(f"{name}, {server}: done", file=sys.stderr)
    return found


# Shares -------------------------------------------------------------------------------------------------------------


def shares(client: Client, texts: Texts, stamp: str, sets: int) -> dict[str, list[float]]:
    """For each place and request, the cached share of the common text: one figure for each fresh text."""
    blocks = {
        (place, i): texts.make(BLOCK_TOKENS, f"{stamp} {place} {i}")
        for place in ("system", "head")
        for i in range(sets)
    }
    found: dict[str, list[float]] = {}

    def ask(place: str, i: int, number: int, label: str) -> None:
        block, tail = blocks[place, i], texts.make(TAIL_TOKENS, f"tail {number}")
        answer = client.ask(_placed(place, block, tail), max_tokens=ANSWER_TOKENS)
        common = texts.rendered([message("system", block)]) if place == "system" else texts.count(block)
        found.setdefault(f"{place}, {label}", []).append(share(answer, common))

    for place, i in blocks:
        for number, label in enumerate(("first", "second", "third")):
            ask(place, i, number, label)
    client.restart()
    for place, i in blocks:
        ask(place, i, 3, "after a restart")
    return found


def _placed(place: str, block: str, tail: str) -> Messages:
    if place == "system":
        return [message("system", block), message("user", tail)]
    return [message("user", f"{block}\n\n{tail}")]


def share(answer: Answer, common_tokens: int) -> float:
    """The share of the common tokens that was cached. Cached tokens after them do not count."""
    return round(min(1.0, answer.cached_tokens / common_tokens), 4)


# Chat ---------------------------------------------------------------------------------------------------------------


def chat(client: Client, texts: Texts, stamp: str) -> Chat:
    def before_turn(turn: int) -> None:
        if turn == CHAT_RESTART:
            client.restart()

    system = texts.make(CHAT_SYSTEM_TOKENS, f"{stamp} chat")
    answers, _ = _converse(
        client, texts, system, CHAT_TURNS, CHAT_MESSAGE_TOKENS, CHAT_ANSWER_TOKENS, before_turn=before_turn
    )
    return turns_of(answers, texts.count("<|im_start|>assistant\n"))


def turns_of(answers: list[Answer], answer_header_tokens: int) -> Chat:
    """Figures of each turn. A prompt ends with the header of its answer; this header counts for the next turn."""
    turns, boundary = [], 0
    for answer in answers:
        turns.append(
            {
                "prompt_tokens": answer.prompt_tokens,
                "cached_tokens": answer.cached_tokens,
                "last_turn_tokens": answer.prompt_tokens - boundary,
                "recomputed_tokens": answer.prompt_tokens - answer.cached_tokens,
            }
        )
        boundary = answer.prompt_tokens - answer_header_tokens
    return turns


def worst_excess(turns: Chat) -> int:
    """The largest excess of recomputed tokens over new tokens in a turn after the first. The goal is 0 or less."""
    return max(turn["recomputed_tokens"] - turn["last_turn_tokens"] for turn in turns[1:])


def _converse(
    client: Client,
    texts: Texts,
    system: str,
    turns: int,
    message_tokens: int,
    answer_tokens: int,
    *,
    before_turn: Callable[[int], None] = lambda turn: None,
) -> tuple[list[Answer], Messages]:
    """A conversation. Every request carries all earlier messages, as chat clients do."""
    messages, answers = [message("system", system)], []
    for turn in range(turns):
        before_turn(turn)
        messages.append(message("user", texts.make(message_tokens, f"turn {turn}")))
        answers.append(client.ask(messages, max_tokens=answer_tokens))
        messages.append(message("assistant", answers[-1].text))
    return answers, messages


# Writes -------------------------------------------------------------------------------------------------------------


def session_writes(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """For each server, the bytes that one session wrote and the bytes that it had to keep."""
    folder, found = checkpoint(name), {}
    texts, stamp = Texts(folder), f"{time.time_ns():x}"
    with side_by_side(arguments.servers, folder, ROOMY, peers=arguments.peers, core=arguments.core) as clients:
        for server, client in clients.items():
            cache = client.server.recipe.cache
            if cache is not None:
                measured = _session(client, texts, stamp, cache, CONFIGS[name], arguments.turns)
                found[server] = {"options": dict(client.server.recipe.options), **measured}
    return found


def _session(
    client: Client, texts: Texts, stamp: str, cache: Path, config: dict[str, Any], turns: int
) -> dict[str, Any]:
    """Measure one session. The folder's count includes what the server writes as it stops; the processes' count cannot."""
    process_before = process_written_bytes(client.server.pid)
    with WriteLedger(cache) as ledger:
        system = texts.make(BLOCK_TOKENS, f"{stamp} session")
        answers, _ = _converse(client, texts, system, turns, SESSION_MESSAGE_TOKENS, SESSION_ANSWER_TOKENS)
        time.sleep(SETTLE_SECONDS)
        process_after, reported = process_written_bytes(client.server.pid), client.cache_report()
        client.close()
        client.server.stop()
    last = answers[-1]
    unique = unique_bytes(last.prompt_tokens + last.completion_tokens, config)
    process = None if process_before is None or process_after is None else process_after - process_before
    return {
        "prompt_tokens": last.prompt_tokens,
        "cached_tokens_of_last_turn": last.cached_tokens,
        "unique_bytes": unique,
        "folder_bytes": ledger.written_bytes,
        "process_bytes": process,
        "folder_ratio": round(ledger.written_bytes / unique, 2),
        "process_ratio": None if process is None else round(process / unique, 2),
        "reported": reported,
    }


def unique_bytes(tokens: int, config: dict[str, Any]) -> int:
    """Bytes that a session of `tokens` tokens needs on disk to continue: their keys and values, and one state."""
    return tokens * token_bytes(config) + state_bytes(config)


# Tables -------------------------------------------------------------------------------------------------------------


def shown(servers: Mapping[str, Any]) -> str:
    parts = []
    if all("shares" in found for found in servers.values()):
        labels = list(next(iter(servers.values()))["shares"])
        rows = [[name, *(f"{min(found['shares'][label]):.3f}" for label in labels)] for name, found in servers.items()]
        parts.append(f"lowest cached share (goal: {SHARE_GOAL})\n{table(['server', *labels], rows)}")
    if all("chat" in found for found in servers.values()):
        rows = []
        for name, found in servers.items():
            turns = [f"{turn['recomputed_tokens']}/{turn['last_turn_tokens']}" for turn in found["chat"]["turns"]]
            rows.append([name, *turns, str(found["chat"]["worst_excess_tokens"])])
        head = ["server", *(str(turn + 1) for turn in range(CHAT_TURNS)), "worst excess"]
        parts.append(f"recomputed / new tokens of each turn, restart before {CHAT_RESTART + 1}\n{table(head, rows)}")
    return "\n\n".join(parts)


def shown_writes(written: Mapping[str, Any]) -> str:
    rows = []
    for name, found in next(iter(written.values())).items():
        megabytes = [found["unique_bytes"], found["folder_bytes"], found["process_bytes"]]
        cells = ["-" if value is None else f"{value / 1e6:.1f}" for value in megabytes]
        ratios = ["-" if found[key] is None else f"{found[key]:.2f}" for key in ("folder_ratio", "process_ratio")]
        rows.append([name, str(found["prompt_tokens"]), *cells, *ratios])
    head = ["server", "tokens", "unique MB", "folder MB", "processes MB", "folder ratio", "processes ratio"]
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
