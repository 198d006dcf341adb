"""Which model is where: loaded at the first request, one process each, unloaded by process exit.

`ledger` decides which models may take memory (pure). `admission` asks it, and lets loads wait. `slot` is one model's place.
`residency` loads and unloads; `sweeps` and `residents` do so without a request. `launcher` starts worker processes and says what
they are told. `pool` is what the API sees of all this.
"""

from engine.pool.pool import Pool

__all__ = ["Pool"]
