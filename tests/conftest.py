"""Settings that all tests share."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)  # the time of one example says nothing on a busy machine
settings.load_profile("patient")
