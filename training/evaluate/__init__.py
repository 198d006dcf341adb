"""Evaluate the embedded models on data that they were not trained on, keep the figures as JSON, and write a page.

`measures.py` measures, `document.py` reads and writes the JSON, and `page.py` makes the README from it and the text in
`prose.toml`. `embedding.py`, `review.py` and `speaker.py` measure one model each. They also run alone, even during the
model's training.
"""
