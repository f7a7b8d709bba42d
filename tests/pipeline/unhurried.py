"""Hypothesis without a clock: a busy machine makes no test fail, and every run tries the same."""

from hypothesis import HealthCheck, settings

unhurried = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
