"""The plain loops of p2p, pnp and masactrl make our edits, and are timed only if they do."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

from fpe_core import Checkpoint, Editor, EditParameters, ParameterError, row_counts
from fpe_core.agreement import latent_distance
from fpe_core.editors.ddim import DdimEditing
from fpe_core.editors.masactrl import MasaCtrl
from fpe_core.editors.method import NOTHING, EditMethod
from fpe_core.editors.p2p import PromptToPrompt
from fpe_core.editors.pnp import PlugAndPlay
from jobs.bench.editors.plain import PLAIN, plain_loop
from jobs.bench.speed.gate import TOLERANCE
from jobs.bench.speed.models import load_model
from jobs.bench.speed.workload import make_workload
from jobs.terminal.exits import OK, STOPPED
from tests.jobs.bench.editors.test_command import fpe

STEPS = 4
WITHOUT: dict[str, EditMethod] = {
    "p2p": PromptToPrompt(cross_fraction=0.0, self_fraction=0.0),
    "pnp": PlugAndPlay(attention_fraction=0.0, residual_fraction=0.0),
    "masactrl": MasaCtrl(steps=(1.0, 1.0)),
}
"""The same methods, in which the source gives nothing."""
HALF: dict[str, EditMethod] = {
    "p2p": PromptToPrompt(cross_fraction=0.0),
    "pnp": PlugAndPlay(residual_fraction=0.0),
    "masactrl": MasaCtrl(steps=(0.5, 1.0)),
}


@pytest.fixture(scope="module")
def micro() -> Checkpoint:
    return load_model("micro", "cpu")


def parameters_of(method: EditMethod) -> EditParameters:
    return EditParameters(steps=STEPS, width_px=64, height_px=64).edited_by(method)


@torch.inference_mode()
def distance(checkpoint: Checkpoint, plain: EditMethod, ours: EditMethod) -> float:
    """Of one edit by the plain loop from one by our editor, as a share of the latent's norm."""
    work = make_workload(1, 1, parameters_of(ours))
    editor = Editor(checkpoint)
    inversion = editor.invert(work.images, work.source_prompts, work.parameters)
    made = editor.edit(inversion, work.target_prompts).edits[0][0].latent
    loop = plain_loop(checkpoint, parameters_of(plain))
    before = dict(checkpoint.unet.attn_processors)
    source, target = work.source_prompts[0], work.target_prompts[0][0]
    trajectory = loop.invert(inversion.trajectory[:, 0], source)
    assert len(trajectory) == STEPS + 1
    expected = loop.edit(trajectory, source, target)
    assert checkpoint.unet.attn_processors == before, "nothing of it is left behind"
    return latent_distance(made, expected[0])


@pytest.mark.parametrize("name", PLAIN)
def test_both_make_the_same_edit(micro: Checkpoint, name: str) -> None:
    published = type(WITHOUT[name])()
    assert distance(micro, published, published) <= TOLERANCE / 10
    assert distance(micro, HALF[name], HALF[name]) <= TOLERANCE / 10


@pytest.mark.parametrize("name", PLAIN)
def test_a_loop_that_takes_less_of_the_source_is_seen(micro: Checkpoint, name: str) -> None:
    published = type(WITHOUT[name])()
    assert distance(micro, WITHOUT[name], published) >= 5 * TOLERANCE
    assert distance(micro, HALF[name], published) >= 5 * TOLERANCE


def test_other_methods_have_no_plain_loop(micro: Checkpoint) -> None:
    with pytest.raises(ParameterError, match="no plain loop of ddim"):
        plain_loop(micro, parameters_of(DdimEditing()))


SMALL = ("--speed", "--speed-model", "micro", "--speed-steps", str(STEPS), "--speed-rounds", "1")


def test_both_arms_are_timed_and_their_rows_are_counted(tmp_path: pathlib.Path) -> None:
    code, out, said = fpe("bench", "editors", *SMALL, "--device", "cpu", "--out", str(tmp_path))
    assert code == OK, said
    report = json.loads((tmp_path / "speed.json").read_text())
    assert [each["method"] for each in report["methods"]] == list(PLAIN)
    for each in report["methods"]:
        givers = 1 if each["method"] == "pnp" else 2
        rows = (STEPS + 4 * (2 + givers) * STEPS) / 4
        (run,) = each["plain"]["runs"]
        assert run["unet_rows"] / 4 == rows
        parameters = EditParameters.from_dict(each["parameters"])
        prompt = "" if each["method"] == "masactrl" else "a photo"
        counts = row_counts(parameters, [NOTHING] * 4, source_prompt=prompt)
        assert each["ours"]["runs"][0]["unet_rows"] == counts.total
        assert 0 < each["plain"]["from_ours"] <= report["tolerance"]
        assert f"{each['times']:.2f}" in out


def test_arms_that_disagree_have_no_ratio(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.bench.editors.timing.tolerance_of", lambda _model: 1e-12)
    monkeypatch.setattr("jobs.bench.editors.timing.PLAIN", {"pnp": PLAIN["pnp"]})
    code, out, _ = fpe("bench", "editors", *SMALL, "--device", "cpu", "--out", str(tmp_path))
    assert code == STOPPED
    assert "pnp: wrong: an edit is" in out
    report = json.loads((tmp_path / "speed.json").read_text())
    assert [each["times"] for each in report["methods"]] == [None]
