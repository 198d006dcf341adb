"""What agents get from a server's cache: shared system messages, chats, and what a session writes to the SSD.

    make bench-kv        (python -m benchmarks.kv.agents [--parts shares,chat,writes])

`shares`  A system message of about 1,000 tokens with another user message: which part of it is cached on the second request. The
          same text as the head of one user message with another tail: which part is cached on the third. Both again after a
          restart. The least of `--sets` fresh texts counts.
`chat`    Ten turns, the server restarted before the sixth. Tokens recomputed in each turn (prompt less cached) against the last
          turn's: all after the message before, which is the previous answer, the new message, and what frames them.
`writes`  An agent's session of 50 turns, on one checkpoint with state layers (`hybrid`): bytes written below the server's cache
          folder, and by its processes, over the session's unique bytes: keys and values of its final tokens, and one state.
          Only servers that keep prompts on disk.
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
"""For writing behind, before processes are asked what they wrote and stopped."""

Chat = list[dict[str, int]]
"""Each turn's `prompt_tokens`, `cached_tokens`, `last_turn_tokens` and `recomputed_tokens`."""


def main() -> int:
    options = parser(__doc__, "kv-agents.json", "nano,hybrid")
    options.add_argument("--parts", default="shares,chat,writes", help="what is measured, separated by commas")
    options.add_argument("--sets", type=int, default=2, help="fresh texts of `shares`")
    options.add_argument("--turns", type=int, default=50, help="of the session in `writes`")
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
    """`shares` and `chat` of one checkpoint: by server, options and figures."""
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
    """By place and request, the cached share of the text that requests have in common, one for each fresh text."""
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
    """Of the common tokens, how many were cached. What is cached beyond them does not count."""
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
    """Figures of each turn. A prompt ends with the header of its answer, which belongs to the turn after it."""
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
    """The most tokens that a turn after the first recomputed beyond the last turn's; 0 or less is the goal."""
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
    """A conversation in which every request carries all before it, as chat clients send it."""
    messages, answers = [message("system", system)], []
    for turn in range(turns):
        before_turn(turn)
        messages.append(message("user", texts.make(message_tokens, f"turn {turn}")))
        answers.append(client.ask(messages, max_tokens=answer_tokens))
        messages.append(message("assistant", answers[-1].text))
    return answers, messages


# Writes -------------------------------------------------------------------------------------------------------------


def session_writes(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """By server, what one session wrote and what it had to keep."""
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
    """The folder's ledger includes what is written when the server stops; the processes can only be asked before."""
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
    """What a session that ended with so many tokens must have on disk to go on: their keys and values, and one state."""
    return tokens * token_bytes(config) + state_bytes(config)


# Tables -------------------------------------------------------------------------------------------------------------


def shown(servers: Mapping[str, Any]) -> str:
    parts = []
    if all("shares" in found for found in servers.values()):
        labels = list(next(iter(servers.values()))["shares"])
        rows = [[name, *(f"{min(found['shares'][label]):.3f}" for label in labels)] for name, found in servers.items()]
        parts.append(f"least cached share (goal: {SHARE_GOAL})\n{table(['server', *labels], rows)}")
    if all("chat" in found for found in servers.values()):
        rows = []
        for name, found in servers.items():
            turns = [f"{turn['recomputed_tokens']}/{turn['last_turn_tokens']}" for turn in found["chat"]["turns"]]
            rows.append([name, *turns, str(found["chat"]["worst_excess_tokens"])])
        head = ["server", *(str(turn + 1) for turn in range(CHAT_TURNS)), "worst excess"]
        parts.append(f"recomputed / last turn's tokens, restart before {CHAT_RESTART + 1}\n{table(head, rows)}")
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
