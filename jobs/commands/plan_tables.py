"""The tables of `fpe plan` about cost: where the time goes, and what each key would change."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from jobs.terminal.texts import count_text, duration_text, money_text, size_text
from jobs.terminal.titled_table import figures_table, titled_table
from pipeline.cost.estimate import Estimate
from pipeline.cost.price import Price
from pipeline.cost.probe import Probe


def cost_table(price: Price, price_per_hour: float | None) -> Table:
    """Seconds by kind of work, device-hours, the run's duration, and its cost if a price is
    given."""
    expected, probe, work = price.estimate, price.probe, price.work
    table = figures_table(f"On {probe.device}", _probed(probe, is_now=price.is_measured_now))
    workers = "1 worker" if work.actors == 1 else f"{work.actors:,} workers"
    rows = {
        "seconds per UNet row": f"{expected.row_s:.3g}",
        "UNet": duration_text(expected.unet_s),
        "encoders and decoder": duration_text(expected.pictures_s),
        "judge": duration_text(expected.judge_s) if work.is_judged else "",
        "CPU time of reading and writing": duration_text(expected.cpu_io_s),
        "device-hours": f"{expected.device_hours:.3g}",
        "cost": "" if price_per_hour is None else _money(expected, price_per_hour),
        f"time with {workers}": duration_text(expected.wall_s),
        "  with twice as many": duration_text(price.with_actors(2 * work.actors).wall_s),
        "  plus loading the model": duration_text(probe.load_s),
    }
    for name, value in rows.items():
        if value:
            table.add_row(Text(name), Text(value))
    return table


def key_effects_table(price: Price, price_per_hour: float | None) -> Table:
    """What the job would cost with one key changed and all others unchanged."""
    headings = ["", "rows", "hours", "per edit", "output"]
    if price_per_hour is not None:
        headings.append("cost")
    table = titled_table("What each key would change", headings)
    now = price.estimate
    _add(table, "as in the job", now, now, price_per_hour)
    for effect in price.key_effects:
        name = f"{effect.key} {effect.now} → {effect.then}"
        _add(table, name, effect.estimate, now, price_per_hour)
    return table


def _add(table: Table, name: str, then: Estimate, now: Estimate, price: float | None) -> None:
    figures = [
        count_text(then.unet_rows),
        f"{then.device_hours:.3g}",
        _change(then.device_hours / then.edits, now.device_hours / now.edits),
        size_text(then.output_bytes),
    ]
    if price is not None:
        figures.append(_money(then, price))
    table.add_row(Text(name), *figures)


def _change(then: float, now: float) -> str:
    """The relative change in percent; "" if it rounds to 0 %."""
    change = 100 * (then / now - 1)
    return f"{change:+.0f} %" if abs(change) >= 0.5 else ""


def _money(cost: Estimate, price_per_hour: float) -> str:
    return money_text(cost.money(price_per_hour))


def _probed(probe: Probe, *, is_now: bool) -> str:
    when = "measured just now" if is_now else f"probe of {probe.date[:16].replace('T', ' ')}"
    size = f"{probe.key.width_px} x {probe.key.height_px} px, {probe.key.dtype}"
    return f"{when}; {size}; {count_text(probe.unet_rows)} UNet rows"
