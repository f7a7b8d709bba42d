"""Outcomes: closed, one schema, small."""

from __future__ import annotations

from dataclasses import asdict, replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_core import EditScores
from fpe_core.judging.rules import RejectReason
from pipeline.ledger.outcome import (
    GATE_COLUMN,
    MAX_MESSAGE_CHARS,
    OUTCOME_SCHEMA,
    SCORE_COLUMNS,
    FailureCode,
    Outcome,
    as_outcomes,
    outcomes_from_bytes,
    outcomes_table,
    short_message,
)
from tests.builders.outcome_rows import accepted, failed, key, rejected
from tests.builders.part_of_0_2 import outcomes_to_bytes


def test_the_words_are_those_of_the_design() -> None:
    assert list(Outcome) == ["accepted", "rejected", "failed", "not_applicable"]
    assert list(FailureCode) == [
        "source_missing",
        "source_forbidden",
        "source_throttled",
        "decode_failed",
        "image_too_large",
        "prompt_invalid",
        "inversion_diverged",
        "nan_latent",
        "out_of_memory",
        "judge_failed",
        "write_failed",
        "worker_died",
    ]
    assert list(RejectReason) == [
        "no_change",
        "structure_lost",
        "wrong_direction",
        "off_target",
        "source_not_reconstructed",
    ]


def test_outcomes_become_rows_of_the_fixed_schema() -> None:
    table = outcomes_table([accepted(1), rejected(2), failed(3, FailureCode.NAN_LATENT)])
    assert table.schema.equals(OUTCOME_SCHEMA)
    assert table["outcome"].to_pylist() == ["accepted", "rejected", "failed"]
    assert table["reason"].to_pylist() == ["", "no_change", "nan_latent"]
    assert table["part"].to_pylist() == ["part-a", "", ""]
    assert outcomes_table([]).schema.equals(OUTCOME_SCHEMA)


def test_there_is_no_other_outcome_reason_or_code() -> None:
    with pytest.raises(ValueError, match="no_such_code"):
        key(1).failed("no_such_code", "")
    with pytest.raises(ValueError, match="decode_failed"):
        key(1).rejected("decode_failed", unet_rows=0, seconds=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has a part and a file"):
        key(1).accepted(part="", edited_file_name="", unet_rows=0, seconds=0)


def test_outcomes_in_the_metadata_of_0_2_are_read() -> None:
    table = outcomes_table([accepted(1), failed(2)])
    assert outcomes_from_bytes(outcomes_to_bytes(table)).equals(table)
    assert outcomes_from_bytes(outcomes_to_bytes(table.slice(0, 0))).num_rows == 0
    with pytest.raises(pa.ArrowInvalid):
        outcomes_from_bytes(b"anything")
    with pytest.raises(pa.ArrowInvalid):
        outcomes_from_bytes(b"\xff\x00 no text")


def test_scores_and_files_are_columns() -> None:
    scores = EditScores(text_score=0.25, psnr_db=float("inf"))
    kept = replace(key(1), edit_type="colour").rejected(
        RejectReason.OFF_TARGET,
        unet_rows=1.0,
        seconds=1.0,
        edited_file_name="rejected/part-a/1.png",
        source_file_name="part-a/source/1.png",
        scores=scores,
    )
    table = outcomes_table([kept, accepted(2)])
    first, second = outcomes_from_bytes(outcomes_to_bytes(table)).to_pylist()
    assert {name: first[name] for name in SCORE_COLUMNS} == asdict(scores)
    assert {second[name] for name in SCORE_COLUMNS} == {None}
    assert (first["edit_type"], first["part"]) == ("colour", "")
    assert first["edited_file_name"] == "rejected/part-a/1.png"
    assert first["source_file_name"] == "part-a/source/1.png"


def test_a_table_has_all_columns_of_outcomes_and_others_are_left_out() -> None:
    table = outcomes_table([accepted(1), failed(2)])
    assert as_outcomes(table.append_column("worker", pa.array(["a", "b"]))).equals(table)
    for name in OUTCOME_SCHEMA.names:
        with pytest.raises(KeyError, match=name):
            as_outcomes(table.drop_columns([name]))


def test_a_column_that_0_1_had_and_this_release_has_not_is_left_out() -> None:
    table = outcomes_table([accepted(1), rejected(2)])
    place = table.column_names.index(GATE_COLUMN) + 1
    of_0_1 = table.add_column(place, "inversion_psnr_db", pa.array([31.5, None], pa.float64()))
    assert as_outcomes(of_0_1).equals(table)


def test_a_reason_that_0_1_called_otherwise_is_read_under_its_name_of_now() -> None:
    refused = key(1).rejected(RejectReason.SOURCE_NOT_RECONSTRUCTED, unet_rows=0, seconds=0)
    table = outcomes_table([refused, rejected(2), accepted(3)])
    reasons = pa.array(["source_not_reproduced", "no_change", ""])
    of_0_1 = table.set_column(
        table.column_names.index("reason"), OUTCOME_SCHEMA.field("reason"), reasons
    )
    assert as_outcomes(of_0_1).equals(table)
    assert outcomes_from_bytes(outcomes_to_bytes(of_0_1)).equals(table)


def test_an_accepted_edit_has_its_type_scores_and_files_a_failed_one_its_type() -> None:
    scores = EditScores(ssim=0.5, saturation_shift=-0.125)
    shape = replace(key(1), edit_type="shape")
    kept = shape.accepted(
        part="part-a",
        edited_file_name="part-a/edited/1.png",
        unet_rows=1.0,
        seconds=1.0,
        source_file_name="part-a/source/1.png",
        scores=scores,
    )
    first, second = outcomes_table([kept, shape.failed("nan_latent", "")]).to_pylist()
    assert {name: first[name] for name in SCORE_COLUMNS} == asdict(scores)
    assert first["edited_file_name"] == "part-a/edited/1.png"
    assert first["source_file_name"] == "part-a/source/1.png"
    assert {second[name] for name in SCORE_COLUMNS} == {None}
    assert (second["edited_file_name"], second["source_file_name"]) == ("", "")
    assert (first["edit_type"], second["edit_type"]) == ("shape", "shape")


@given(st.text())
def test_messages_are_one_short_line_that_can_be_stored(text: str) -> None:
    message = short_message(text)
    assert len(message) <= MAX_MESSAGE_CHARS
    assert not {"\n", "\r", "\t"} & set(message)
    assert short_message(message) == message
    assert outcomes_table([key(1).failed("decode_failed", text)])["message"][0].as_py() == message


def test_a_long_message_keeps_its_beginning() -> None:
    message = short_message("x" * 400 + "\n" + "y" * 400)
    assert message.startswith("x" * 400 + " y")
    assert message.endswith("y...")
    assert len(message) == MAX_MESSAGE_CHARS


@given(st.characters(categories=["Cs"]))
def test_half_a_character_in_a_message_does_not_cost_its_row(surrogate: str) -> None:
    assert short_message(f"a{surrogate}b") == "a\ufffdb"
