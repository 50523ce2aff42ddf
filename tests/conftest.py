"""Settings that all tests share."""

import os

from hypothesis import HealthCheck, settings

# How long an example takes says nothing on a busy machine.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", PATIENT, derandomize=False)
settings.register_profile("same", PATIENT, derandomize=True)  # the same examples in every run: no failure by chance
settings.load_profile("same" if os.environ.get("CI") else "random")
