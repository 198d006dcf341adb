"""What the embedded models can do, on data that they were not trained on: measured, kept as JSON, and written as a page.

`measures.py` measures, `document.py` is the JSON, `page.py` makes the README of it and of the words in `prose.toml`.
`embedding.py`, `review.py` and `speaker.py` measure one model each and run alone too, also while it is being trained.
"""
