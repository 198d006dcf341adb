"""Dialects are the APIs by which clients ask for text. Each has a folder with the same four files, and none imports another.

`schema` is the body as clients send it, `requests` turns it into our requests, `replies` implements `respond.Dialect`, and
`route` joins the three. A new dialect is a folder here and a line in `ROUTERS`.
"""

from engine.api.dialects.chat import route as chat
from engine.api.dialects.completions import route as completions

ROUTERS = (chat.router, completions.router)
