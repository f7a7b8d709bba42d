"""What a worker's code is given in a run, for tests without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.supervision.supervisor import Orders


class Watched:
    """An oversight that writes down what it sees."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.in_focus: list[list[bytes]] = []
        self.signs_of_life = 0
        self.unet_rows_told: list[int] = []

    @contextmanager
    def focus(self, groups: Sequence[bytes]) -> Iterator[None]:
        self.in_focus.append(list(groups))
        yield

    def alive(self) -> None:
        self.signs_of_life += 1

    def made(self, unet_rows: int) -> None:
        self.unet_rows_told.append(unet_rows)
