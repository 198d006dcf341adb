"""Measure the time to the first text for a known prefix: from memory, after a restart, after eviction.

    make bench-kv        (python -m benchmarks.kv.prefix [--prefixes N] [--place system])

All servers run at once and are asked in turn, so a slow minute of the machine affects all of them. Each fresh prefix
goes through these phases:

| phase        | what happened before                                        |
|--------------|-------------------------------------------------------------|
| `cold`       | nothing: the server has never seen the prefix               |
| `second`     | the cold request, with another suffix                       |
| `third`      | the second request, with another suffix                     |
| `restarted`  | SIGTERM, start in the same home, an unrelated short request |
| `pushed_out` | six other prompts of that length; memory holds about four   |

A ratio divides the time by that of the same server's cold request for the same prefix. Figures are medians over the
prefixes. For the first `--references` prefixes the answers are compared with those of the same server without any
cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kv.checkpoints import CONFIGS, checkpoint, state_bytes, token_bytes
from benchmarks.kv.client import Answer, Client, Messages, Texts, message, side_by_side
from benchmarks.kv.report import parser, table, write
from benchmarks.kv.servers import NO_CACHE, Budget

OURS = "duet"
PHASES = ("cold", "second", "third", "restarted", "pushed_out")
SUFFIX_TOKENS, ANSWER_TOKENS = 16, 16
PREFIXES_IN_MEMORY, OTHER_PREFIXES = 4, 6
STATES_PER_PREFIX = 3

Answers = dict[str, dict[str, list[Answer]]]
"""For each server and phase, one answer per prefix, in order."""


def main() -> int:
    options = parser(__doc__, "kv-prefix.json", "nano,hybrid")
    options.add_argument(
        "--prefixes", type=int, default=2, help="number of fresh prefixes; figures are medians over them"
    )
    options.add_argument("--references", type=int, default=1, help="number of prefixes whose answers are checked")
    options.add_argument("--tokens", type=int, default=2048, help="tokens of a prefix; use fewer to try the script out")
    options.add_argument("--place", choices=("user", "system"), default="user", help="message that holds the prefix")
    arguments = options.parse_args()
    begun = time.monotonic()
    found = {name: measure(name, arguments) for name in arguments.checkpoints}
    compared = {name: against_peers(servers) for name, servers in found.items()}
    for name, servers in found.items():
        print(
            f"\n{name}: seconds to the first text, and their ratio to the same server's cold request\n{shown(servers)}"
        )
        cells = ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in compared[name].items())
        print(f"{OURS}'s seconds divided by those of the fastest other server: {cells or 'not measured'}")
    write(arguments.json, arguments, begun, {"checkpoints": found, "of_better_peer": compared})
    return 0


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all phases with one checkpoint on all servers."""
    folder = checkpoint(name)
    texts = Texts(folder)
    stamp = f"{time.time_ns():x}"  # no two runs share a prefix
    prefixes = [texts.make(arguments.tokens, f"{stamp} {i}") for i in range(arguments.prefixes)]
    others = [texts.make(arguments.tokens, f"{stamp} other {i}") for i in range(OTHER_PREFIXES)]

    def asked(prefix: str, phase: str) -> Messages:
        suffix = texts.make(SUFFIX_TOKENS, f"question {PHASES.index(phase)}")
        if arguments.place == "system":
            return [message("system", prefix), message("user", suffix)]
        return [message("user", f"{prefix}\n\n{suffix}")]

    budget = budget_for(CONFIGS[name], arguments.tokens)
    with side_by_side(arguments.servers, folder, budget, peers=arguments.peers, core=arguments.core) as clients:
        answers = run_phases(clients, prefixes, others, asked)
        options = {server: dict(client.server.recipe.options) for server, client in clients.items()}
    changed = changed_answers(answers, folder, prefixes[: arguments.references], asked, arguments)
    return {
        server: {"options": options[server], **figures(phases), "answers_changed": changed[server]}
        for server, phases in answers.items()
    }


def budget_for(config: dict[str, Any], tokens: int) -> Budget:
    """Memory for about `PREFIXES_IN_MEMORY` prefixes of `tokens` tokens, with their suffixes and states."""
    prompt = (tokens + 2 * SUFFIX_TOKENS + ANSWER_TOKENS) * token_bytes(config)
    return Budget(PREFIXES_IN_MEMORY * (prompt + STATES_PER_PREFIX * state_bytes(config)))


def run_phases(
    clients: Mapping[str, Client],
    prefixes: Sequence[str],
    others: Sequence[str],
    asked: Callable[[str, str], Messages],
) -> Answers:
    """Send every prefix in every phase to every server. The servers take turns, and each round begins with another one."""
    answers: Answers = {name: defaultdict(list) for name in clients}
    turn = 0

    def ask_all(prefix: str, phase: str) -> None:
        nonlocal turn
        names = list(clients)
        for name in rotated(names, turn):
            answers[name][phase].append(clients[name].ask(asked(prefix, phase), max_tokens=ANSWER_TOKENS))
        turn += 1
        seconds = "  ".join(f"{name} {answers[name][phase][-1].first_text_seconds:.3f}" for name in names)
        print(f"{phase:10} {seconds}", file=sys.stderr)

    for prefix in prefixes:
        for phase in PHASES[:3]:
            ask_all(prefix, phase)
    for client in clients.values():
        client.restart()
    for prefix in prefixes:
        ask_all(prefix, "restarted")
    for other in others:
        for client in clients.values():
            client.ask(asked(other, "cold"), max_tokens=1)
    for prefix in prefixes:
        ask_all(prefix, "pushed_out")
    return answers


def rotated(names: Sequence[str], turn: int) -> list[str]:
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def changed_answers(
    answers: Answers,
    folder: Path,
    prefixes: Sequence[str],
    asked: Callable[[str, str], Messages],
    arguments: argparse.Namespace,
) -> dict[str, list[str]]:
    """For each server, the phases in which its answer differs from its answer without a cache."""
    found: dict[str, list[str]] = {name: [] for name in answers}
    if not prefixes:
        return found
    with side_by_side(arguments.servers, folder, NO_CACHE, peers=arguments.peers, core=arguments.core) as clients:
        for name, client in clients.items():
            for i, prefix in enumerate(prefixes):
                for phase in PHASES[1:]:
                    expected = client.ask(asked(prefix, phase), max_tokens=ANSWER_TOKENS)
                    if expected.cached_tokens >= arguments.tokens // 2:
                        raise AssertionError(f"{name} without a cache reports {expected.cached_tokens} cached tokens")
                    if expected.text != answers[name][phase][i].text:
                        found[name].append(phase)
    return found


def figures(phases: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Medians over the prefixes. A ratio divides each prefix's time by that of its own cold request."""
    cold = [answer.first_text_seconds for answer in phases["cold"]]
    found = {}
    for phase, answers in phases.items():
        seconds = [answer.first_text_seconds for answer in answers]
        found[phase] = {
            "seconds": round(statistics.median(seconds), 4),
            "ratio": round(statistics.median(one / base for one, base in zip(seconds, cold, strict=True)), 4),
            "all_seconds": [round(one, 4) for one in seconds],
            "cached_tokens": [answer.cached_tokens for answer in answers],
        }
    return {"prompt_tokens": phases["cold"][0].prompt_tokens, "phases": found}


def against_peers(servers: Mapping[str, Any]) -> dict[str, float]:
    """For each phase, our seconds divided by those of the fastest other server; empty when there is nothing to compare."""
    others = [name for name in servers if name != OURS]
    if OURS not in servers or not others:
        return {}
    seconds = {
        name: {phase: one["seconds"] for phase, one in found["phases"].items()} for name, found in servers.items()
    }
    return {
        phase: round(ours / min(seconds[name][phase] for name in others), 3) for phase, ours in seconds[OURS].items()
    }


def shown(servers: Mapping[str, Any]) -> str:
    rows = []
    for name, found in servers.items():
        cells = [f"{entry['seconds']:.3f} {entry['ratio']:.3f}" for entry in found["phases"].values()]
        cached = "/".join(str(min(entry["cached_tokens"])) for entry in found["phases"].values())
        rows.append([name, *cells, cached, ", ".join(found["answers_changed"]) or "none"])
    return table(["server", *PHASES, "fewest tokens cached", "answers changed"], rows)


if __name__ == "__main__":
    sys.exit(main())
