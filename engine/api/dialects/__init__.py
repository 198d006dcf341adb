"""Dialects: APIs by which clients ask for text. A folder a dialect, each with the same four files, and none imports another.

`schema` is the body as clients send it, `requests` makes our requests of it, `replies` implements `respond.Dialect`, and `route`
joins the three. A new dialect is a folder and a line in `engine.app`.
"""
