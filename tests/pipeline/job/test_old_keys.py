"""A key of version 0.1 in a job file is an error whose message has the new name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.job.problems import describe_errors, has_key
from pipeline.job.renamed_keys import REMOVED, RENAMED, advice
from pipeline.job.yaml_text import Path


def nothing(_path: Path) -> bool:
    return False


def everything(_path: Path) -> bool:
    return True


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Reconstruction(_Strict):
    autoencoder_psnr_db_at_least: float | None = None


class _Judge(_Strict):
    reconstruction: _Reconstruction = _Reconstruction()
    retries: dict[str, int] | None = None


class _Model(_Strict):
    checkpoint: str = "builtin:still-life"


class _Job(_Strict):
    judge: _Judge | None = None
    model: _Model = _Model()


class _Rules(_Strict):
    rules: list[str] = []


class _RulesFile(_Strict):
    judge: _Rules


def complaints(data: dict[str, Any], model: type[BaseModel] = _Job) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return [problem.text for problem in describe_errors(caught.value, data, model)]


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_key_is_an_error_with_its_new_name(name: str) -> None:
    assert advice(tuple(name.split(".")), everything) == (
        f"was renamed to {RENAMED[name]} in 0.2.0"
    )


@pytest.mark.parametrize("name", [*REMOVED, "judge.reconstruction.inversion_psnr_db_at_least"])
def test_a_removed_key_is_an_error_that_says_to_leave_it_out(name: str) -> None:
    assert advice(tuple(name.split(".")), nothing) == "was removed in 0.2.0; leave it out"


@pytest.mark.parametrize("path", [("judge", "clip"), ("second_tries",), ("judge", "rules", 0)])
def test_other_keys_are_not_old_ones(path: Path) -> None:
    assert advice(path, everything) is None


def test_a_job_with_old_keys_is_refused_with_what_to_do() -> None:
    data = {"judge": {"second_tries": {"most": 3}, "reproduction": {}}, "model": {"compile": True}}
    assert complaints(data) == [
        "judge.second_tries: was renamed to judge.retries in 0.2.0",
        "judge.reproduction: was renamed to judge.reconstruction in 0.2.0",
        "model.compile: was removed in 0.2.0; leave it out",
    ]
    data = {"judge": {"reconstruction": {"inversion_psnr_db_at_least": 18}}}
    assert complaints(data) == [
        "judge.reconstruction.inversion_psnr_db_at_least: was removed in 0.2.0; leave it out"
    ]


def test_a_file_without_the_new_key_does_not_advise_it() -> None:
    (text,) = complaints({"judge": {"second_tries": {}}}, _RulesFile)
    assert text == "judge.second_tries: unknown key; Allowed here: rules"


def test_which_keys_a_model_has() -> None:
    assert has_key(_Job, ("judge", "retries"))
    assert has_key(_Job, ("judge", "reconstruction", "autoencoder_psnr_db_at_least"))
    assert not has_key(_Job, ("judge", "second_tries"))
    assert not has_key(_Job, ("nowhere", "retries"))
