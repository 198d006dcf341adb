"""Routes for the people who run the engine: models, memory, KV, metrics. A new one is a file here and a line in `ROUTERS`."""

from engine.api.operators import admin, metrics, models

ROUTERS = (models.router, admin.router, metrics.router)
