"""The job file's `editor`: names, parameters, and what is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest

from fpe_core import EditParameters, FreePromptEditing, SdEdit, method_named, method_names
from pipeline.errors import JobError
from pipeline.job.file import load_job
from pipeline.job.job import Job


def make_job(**values: Any) -> Job:
    return load_job({"manifest": "m.parquet", "output": "out", **values})


@pytest.mark.parametrize("name", method_names())
def test_a_name_alone_means_the_methods_defaults(name: str) -> None:
    for editor in (name, {"name": name}):
        job = make_job(editor=editor)
        assert job.editor == name
        assert job.resolve_parameters(EditParameters()).method == method_named(name)()


@pytest.mark.parametrize("name", method_names())
def test_the_resolved_job_has_every_parameter_and_reads_back(name: str) -> None:
    job = make_job(editor=name, edit={"steps": 7})
    parameters = job.resolve_parameters(EditParameters(steps=3))
    resolved = job.with_parameters(parameters)
    again = Job.model_validate(resolved.model_dump(mode="json"))
    assert again.resolve_parameters(EditParameters(guidance_scale=1.0)) == parameters
    own = method_named(name)().to_dict()
    assert again.editor == (own if name != "fpe" and len(own) > 1 else name)


def test_parameters_replace_defaults() -> None:
    job = make_job(editor={"name": "sdedit", "strength": 0.3})
    assert job.resolve_parameters(EditParameters()).method == SdEdit(strength=0.3)


def test_the_parameters_of_fpe_stay_keys_of_edit() -> None:
    job = make_job(editor="fpe", edit={"replaced_fraction": 0.5, "layers": {"level": 4}})
    method = job.resolve_parameters(EditParameters()).method
    assert isinstance(method, FreePromptEditing)
    assert method.replaced_fraction == 0.5


def test_the_negative_prompt_inversion_is_a_key_of_every_editor() -> None:
    for editor in ("fpe", "p2p"):
        job = make_job(editor=editor, edit={"inversion": "negative_prompt"})
        parameters = job.resolve_parameters(EditParameters())
        assert parameters.inversion == "negative_prompt"
        assert job.with_parameters(parameters).edit.inversion == "negative_prompt"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"editor": "p2q"}, "editor: must be one of blended, ddim, diffedit, fpe"),
        ({"editor": {"name": "p2p", "crossing": 1}}, "editor: unknown parameter of p2p: crossing;"),
        ({"editor": {"name": "p2p", "cross_fraction": 2}}, "editor: cross_fraction must be"),
        ({"editor": {"strength": 0.5}}, "editor: name: is required"),
        ({"editor": {"name": "fpe", "layers": {"level": 2}}}, "keys of edit: write layers there"),
        ({"editor": {"name": "none", "x": 1}}, "editor: none has no parameters"),
        ({"editor": 3}, "editor: must be text or a mapping (got the number 3)"),
        (
            {"editor": "pnp", "edit": {"replaced_fraction": 0.5}},
            "edit.replaced_fraction is a parameter of fpe, not of pnp",
        ),
        (
            {
                "editor": "pnp",
                "judge": {"retries": {"ladder": {"no_change": [{"replaced_fraction": 0.5}]}}},
            },
            "judge.retries.ladder sets replaced_fraction, a parameter of fpe and not of pnp",
        ),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as raised:
        make_job(**values)
    assert message in str(raised.value)
