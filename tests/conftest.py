"""Shared settings of the tests."""

from hypothesis import HealthCheck, settings

# shared machines stall now and then: a deadline would turn that into a failure
settings.register_profile("ciri", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ciri")
