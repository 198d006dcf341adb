"""Answers of a given form: do they keep to it, and what does that cost."""
