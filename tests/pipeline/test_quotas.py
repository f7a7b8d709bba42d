"""Quotas: the first Q accepted edits of every cell, whatever completes first or is killed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.outcome import Outcome
from pipeline.quotas import Cell, QuotaRow, Quotas, Selection, cell_text, quota_table, select_edits

Edits = list[tuple[Cell, bytes]]

QUOTAS = Quotas(("colour",), 2, (({"colour": "red"}, 4), ({"colour": "grey"}, 0)))
COLOURS = ("red", "blue", "green", "grey")


@dataclass(frozen=True)
class World:
    """Edits in the order of the manifest, and the outcome that each gets when it is made."""

    edits: Edits
    fate: dict[bytes, Outcome]

    def of(self, colour: str) -> list[bytes]:
        return [edit_id for cell, edit_id in self.edits if cell == (colour,)]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    colours = draw(st.lists(st.sampled_from(COLOURS), max_size=40))
    fates = draw(st.lists(st.sampled_from(Outcome), min_size=len(colours), max_size=len(colours)))
    ids = [number.to_bytes(16) for number in range(len(colours))]
    edits: Edits = [((colour,), edit) for colour, edit in zip(colours, ids, strict=True)]
    return World(edits, dict(zip(ids, fates, strict=True)))


def select(world: World, ledger: dict[bytes, Outcome], quotas: Quotas = QUOTAS) -> Selection:
    return select_edits(world.edits, quotas, ledger.get, lambda edit: edit not in ledger)


def table(world: World, ledger: dict[bytes, Outcome]) -> list[QuotaRow]:
    def is_open(edit: bytes) -> bool:
        return edit not in ledger

    return quota_table(select(world, ledger), ledger.get, is_open)


def first_accepted(world: World, colour: str) -> tuple[list[bytes], list[bytes]]:
    """(edits made, edits accepted) of a cell when its edits are made one by one, in order."""
    made: list[bytes] = []
    accepted: list[bytes] = []
    for edit in world.of(colour):
        if len(accepted) == QUOTAS.quota_of((colour,)):
            break
        made.append(edit)
        if world.fate[edit] == Outcome.ACCEPTED:
            accepted.append(edit)
    return made, accepted


def run_with_kills(world: World, draw: st.DataObject) -> dict[bytes, Outcome]:
    """Round after round, of each any edits, in any order, as kills leave them."""
    ledger: dict[bytes, Outcome] = {}
    while selected := list(select(world, ledger).edits):
        order = draw.draw(st.permutations(selected))
        committed = draw.draw(st.integers(1, len(order)))
        ledger |= {edit: world.fate[edit] for edit in order[:committed]}
    return ledger


@given(worlds(), st.data())
def test_the_end_is_that_of_one_edit_after_the_other(world: World, draw: st.DataObject) -> None:
    ledger = run_with_kills(world, draw)
    for colour in COLOURS:
        made, accepted = first_accepted(world, colour)
        in_ledger = [edit for edit in world.of(colour) if edit in ledger]
        assert in_ledger == made
        assert [edit for edit in in_ledger if ledger[edit] == Outcome.ACCEPTED] == accepted


@given(worlds(), st.data())
def test_a_round_takes_what_is_lacking_in_the_order_of_the_manifest(
    world: World, draw: st.DataObject
) -> None:
    """Whatever is in the ledger, also what quotas would not have made."""
    made = draw.draw(st.sets(st.sampled_from(sorted(world.fate)))) if world.fate else set()
    ledger = {edit: world.fate[edit] for edit in made}
    selection = select(world, ledger)
    for colour in COLOURS:
        of_cell = world.of(colour)
        accepted = [edit for edit in of_cell if ledger.get(edit) == Outcome.ACCEPTED]
        lacking = max(0, (QUOTAS.quota_of((colour,)) or 0) - len(accepted))
        waiting = [edit for edit in of_cell if edit not in ledger]
        assert [edit for edit in of_cell if edit in selection.edits] == waiting[:lacking]
    assert len(selection.edits) + selection.spared + len(ledger) == len(world.edits)


@given(worlds(), st.data())
def test_the_table_is_right_in_the_middle_of_a_round(world: World, draw: st.DataObject) -> None:
    """Told from the selection and the ledger: no second look at the manifest."""
    ledger: dict[bytes, Outcome] = {}
    selection = select(world, ledger)
    if selection.edits:
        done = draw.draw(st.sets(st.sampled_from(sorted(selection.edits))))
        ledger = {edit: world.fate[edit] for edit in done}
    rows = quota_table(selection, ledger.get, lambda edit: edit not in ledger)
    assert rows == table(world, ledger)
    for row in rows:
        assert row.done == row.accepted + row.rejected + row.failed <= row.candidates
        assert row.short_by == max(0, (row.quota or 0) - row.accepted)
        assert row.to_do == min(row.short_by, row.candidates - row.done)
    assert sum(row.done for row in rows) == len(ledger)


@given(worlds(), st.data())
def test_a_retry_fills_what_is_lacking_and_nothing_beyond(
    world: World, draw: st.DataObject
) -> None:
    ledger = run_with_kills(world, draw)
    before = dict(ledger)
    reopened = {edit for edit, outcome in ledger.items() if outcome == Outcome.FAILED}
    tried: set[bytes] = set()
    while True:
        selection = select_edits(world.edits, QUOTAS, ledger.get, reopened.__contains__)
        assert len(selection.edits) + selection.spared == len(reopened)
        if not selection.edits:
            break
        for edit in selection.edits:
            ledger[edit] = draw.draw(st.sampled_from(Outcome))
        reopened -= selection.edits.keys()
        tried |= selection.edits.keys()
        rows = quota_table(selection, ledger.get, reopened.__contains__)
        assert sum(row.done for row in rows) == len(ledger), "each edit counts once"
    for row in table(world, ledger):
        assert row.over_by == 0
        of_cell = world.of(row.cell["colour"])
        left = [edit for edit in of_cell if edit in reopened]
        assert not left or not row.short_by, "left alone only where the cell is full"
        assert not left or max([e for e in of_cell if e in tried], default=b"") < min(left)
    assert {e: o for e, o in ledger.items() if e not in tried} == {
        e: o for e, o in before.items() if e not in tried
    }


def test_cells_past_their_quota_are_left_as_they_are() -> None:
    """As when the quota was lowered."""
    ids = [number.to_bytes(16) for number in range(4)]
    world = World([(("blue",), edit) for edit in ids], dict.fromkeys(ids, Outcome.ACCEPTED))
    ledger = dict.fromkeys(ids[1:], Outcome.ACCEPTED)
    assert not select(world, ledger).edits
    [row] = table(world, ledger)
    assert (row.accepted, row.quota, row.over_by, row.short_by, row.to_do) == (3, 2, 1, 0, 0)


def test_no_number_is_no_limit() -> None:
    ids = [number.to_bytes(16) for number in range(5)]
    edits: Edits = [(("red" if number % 2 else "blue",), edit) for number, edit in enumerate(ids)]
    quotas = Quotas(("colour",), None, (({"colour": "red"}, 1),))
    selection = select(World(edits, {}), {}, quotas)
    assert list(selection.edits) == [ids[0], ids[2], ids[4], ids[1]]
    rows = quota_table(selection, {}.get, lambda _: True)
    assert [(row.quota, row.to_do, row.short_by) for row in rows] == [(None, 3, 0), (1, 1, 1)]


@pytest.mark.parametrize(
    ("cell", "quota"),
    [(("red", "cup"), 7), (("red", "box"), 3), (("blue", "cup"), 9), (("", "box"), 0)],
)
def test_the_first_entry_that_fits_a_cell_is_its_quota(cell: Sequence[str], quota: int) -> None:
    quotas = Quotas(
        ("colour", "shape"),
        9,
        (
            ({"shape": "cup", "colour": "red"}, 7),
            ({"colour": "red"}, 3),
            ({"colour": "red", "shape": "box"}, 1),
            ({"colour": ""}, 0),
        ),
    )
    assert quotas.quota_of(tuple(cell)) == quota


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        ("", ""),
        (3, "3"),
        (3.0, "3"),
        (0.5, "0.5"),
        (float("inf"), "inf"),
        (True, "True"),
        (" red", " red"),
    ],
)
def test_values_as_text(value: object, text: str) -> None:
    assert cell_text(value) == text
