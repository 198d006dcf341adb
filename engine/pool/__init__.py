"""Which model is where: loaded at the first request, one process each, unloaded by process exit.

`ledger` decides who may hold memory (pure), `slot` is one model's place, `room` asks the ledger and waits, `launcher` starts
worker processes, `pool` puts them together as the API's `Backend`.
"""

from engine.pool.pool import Pool

__all__ = ["Pool"]
