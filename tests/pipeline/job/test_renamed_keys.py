"""A job that version 0.1 stored is read as the same job."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.job.job import Job
from pipeline.job.renamed_keys import in_todays_keys

OF_0_1: dict[str, Any] = {
    "manifest": "m.parquet",
    "output": "out",
    "judge": {
        "reproduction": {
            "autoencoder_psnr_db_at_least": 19.0,
            "inversion_psnr_db_at_least": None,
        },
        "second_tries": {"most": 3, "ladder": None},
    },
}


def test_keys_of_0_1_are_renamed_and_what_decided_nothing_is_left_out() -> None:
    judge = Job.model_validate(in_todays_keys(OF_0_1)).judge
    assert judge is not None
    assert judge.reconstruction.autoencoder_psnr_db_at_least == 19.0
    assert judge.retries is not None
    assert judge.retries.most == 3
    with pytest.raises(ValidationError, match="reproduction"):
        Job.model_validate(OF_0_1)


def test_a_limit_that_was_set_and_is_no_more_is_refused() -> None:
    gate = {"inversion_psnr_db_at_least": 20.0}
    stored = in_todays_keys({**OF_0_1, "judge": {"reproduction": gate}})
    with pytest.raises(ValidationError, match="inversion_psnr_db_at_least"):
        Job.model_validate(stored)


@pytest.mark.parametrize("job", [{}, {"judge": None}, {"judge": 3}, {"judge": {"clip": None}}])
def test_whatever_else_is_stored_stays(job: dict[str, Any]) -> None:
    assert in_todays_keys(job) == job


def test_what_was_read_stays_as_it_is() -> None:
    before = copy.deepcopy(OF_0_1)
    in_todays_keys(OF_0_1)
    assert before == OF_0_1


def test_removed_keys_that_decide_no_verdict_are_left_out_whatever_they_say() -> None:
    stored = {"model": {"compile": True}, "resources": {"actors": 2, "measure": False}}
    assert in_todays_keys(stored) == {"model": {}, "resources": {"actors": 2}}


def test_a_new_key_is_not_overwritten() -> None:
    data = {"judge": {"second_tries": {"most": 1}, "retries": {"most": 2}}}
    assert in_todays_keys(data)["judge"]["retries"] == {"most": 2}
