"""Who is told of a run where nobody wants to know."""

from __future__ import annotations

import pyarrow as pa


class Nobody:
    """A progress sink that nobody looks at."""

    def start(self, total: int, done: int) -> None:
        pass

    def advance(self, outcomes_table: pa.Table) -> None:
        pass

    def finish(self) -> None:
        pass
