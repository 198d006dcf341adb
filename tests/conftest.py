"""What holds in every run of tests: properties draw the same examples each time, and no slow machine fails one."""

from hypothesis import settings

settings.register_profile("duet", deadline=None, derandomize=True)
settings.load_profile("duet")
