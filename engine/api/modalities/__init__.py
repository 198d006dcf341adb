"""Routes that send one request and get one result. A new one is a file here and a line in `ROUTERS`."""

from engine.api.modalities import embeddings, transcriptions

ROUTERS = (embeddings.router, transcriptions.router)
