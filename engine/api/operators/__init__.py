"""Routes for the people who run the engine: models, memory, KV, metrics."""
