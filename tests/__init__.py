"""All tests. The fakes, children that must start fast, import this too: what is for pytest alone stands in conftest.py."""
