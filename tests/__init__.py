"""All tests. A slow machine fails no property: hypothesis sets no time limit to an example."""

from hypothesis import settings

settings.register_profile("duet", deadline=None)
settings.load_profile("duet")
