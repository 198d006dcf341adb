"""Helpers that start Duet as a user does, for tests, benchmarks and the demo."""
