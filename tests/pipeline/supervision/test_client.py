"""What workers call to reach the supervisor, as far as it needs no Ray."""

from __future__ import annotations

from pipeline.supervision.client import _RayOversight
from pipeline.supervision.supervisor import Orders
from pipeline.supervision.watchdog import TimeLimits, Watchdog


def test_a_death_hides_half_of_the_rows_at_most_however_short_the_block() -> None:
    told: list[int] = []
    oversight = _RayOversight(
        Orders(),
        Watchdog(TimeLimits(60.0, 60.0)),
        lambda _groups: None,
        told.append,
    )
    for rows in range(1000):
        oversight.made(rows)
        assert 2 * told[-1] >= rows
    assert told == sorted(set(told))
    assert len(told) < 1000, "and not each of them is a message"
