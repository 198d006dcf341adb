"""The engine's HTTP API. It sees three ports (`engine.types`): work, models, operators. It never sees the pool."""
