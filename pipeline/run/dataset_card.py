"""The README.md of a run folder: a dataset card with what it contains and how to load it."""

from __future__ import annotations

from pipeline.ledger.ledger import LedgerCounts
from pipeline.ledger.outcome import GATE_COLUMN, SCORE_COLUMNS
from pipeline.ledger.parts import PART_PREFIX, REJECTED_FOLDER
from pipeline.plan.plan import Plan
from pipeline.write.metadata import METHOD_COLUMNS, MetadataLayout
from pipeline.write.provenance import method_text

CARD_FILE = "README.md"

_CONFIG = """\
- config_name: {name}
  data_files:
  - split: train
    path: {path}
"""
_OF_EDITS = """\
task_categories:
- image-to-image
tags:
- synthetic
- image-editing
---
"""


_REJECTED = """
The edits that the judge rejected are another configuration, with the same columns:

    rejected = load_dataset("path/to/this/folder", "rejected", split="train")
"""

_EDITED = """\
Edited images

{{count}}, edited with text by {method}
with the checkpoint `{checkpoint}`.{others}
"""
_NOT_EDITED = """\
Copies of sources: not edited

{count}. **None of them is edited**: the job says `editor: none`, which runs
everything but the model, to measure it. `edited` is a copy of its fitted source, `target_prompt`
what an edit would have been asked for.
"""


def dataset_card(
    plan: Plan,
    layout: MetadataLayout,
    totals: LedgerCounts,
    checkpoint: str,
    *,
    add_ons: str = "",
    keeps_rejected: bool = False,
) -> bytes:
    """The card as UTF-8 Markdown; its YAML header makes `load_dataset` read the parts only.

    `add_ons`: what the checkpoint was loaded with, in words. `keeps_rejected`: rejected edits may
    have files, which then form a second configuration, `rejected`.
    """
    size = f"{plan.parameters.width_px} x {plan.parameters.height_px}"
    configs = _configs(totals, keeps_rejected)
    head, what = (
        configs + _OF_EDITS,
        _EDITED.format(
            method=method_text(plan.parameters),
            checkpoint=checkpoint,
            others=_others(plan, add_ons),
        ),
    )
    if not plan.makes_edits:
        head, what = f"{configs}---\n", _NOT_EDITED
    text = f"""{head}
# {what.format(count=f"{totals.accepted} images of {size} pixels")}
    from datasets import load_dataset
    dataset = load_dataset("path/to/this/folder", split="train")
{_REJECTED if keeps_rejected else ""}
| column | meaning |
|---|---|
{_column_rows(layout)}

Edits of one source share `source_id`, those of one manifest row also `group_id` and `split`: keep
edits with the same `source_id` on the same side of a train and test split. `config.yaml` is the job
that made this folder, `stats.json` its numbers. Edits that failed ({totals.failed}) or were
rejected ({totals.rejected}) are in `.ledger/` with their reasons.
"""
    return text.encode()


def _others(plan: Plan, add_ons: str) -> str:
    """What else decides the edits, where it is not as usual."""
    parameters, said = plan.parameters, [f"Loaded with {add_ons}."] if add_ons else []
    if parameters.inversion != "direct":
        said.append(f"The inversion is `{parameters.inversion}`.")
    if parameters.proximal is not None:
        said.append("Guidance is proximal.")
    if parameters.inside is not None:
        said.append("Masks bind the edits: outside of them nothing is edited.")
    if plan.approximation:
        said.append(f"By an approximation ({plan.approximation}).")
    return "".join(f" {sentence}" for sentence in said)


def _configs(totals: LedgerCounts, keeps_rejected: bool) -> str:
    """The YAML header with the configurations of the dataset.

    `datasets` infers the file format of all of them from the files of the first one, so the first
    must have files.
    """
    paths = {"default": f"{PART_PREFIX}*/**"}
    if keeps_rejected:
        paths["rejected"] = f"{REJECTED_FOLDER}/{PART_PREFIX}*/**"
    if totals.rejected and not totals.accepted:
        paths = dict(reversed(paths.items()))
    configs = (_CONFIG.format(name=name, path=path) for name, path in paths.items())
    return "---\nconfigs:\n" + "".join(configs)


def _column_rows(layout: MetadataLayout) -> str:
    meanings = {
        "edited": "the edited image" if layout.edited else "a copy of the source, not edited",
        "edit_id": "hash of everything the edit was made from",
        "source_id": "hash of the source",
        "group_id": "hash of the source with its prompt and parameters",
        "id, split": "those of the manifest's row",
        "source_prompt, target_prompt": "what the source shows, and what the edit was to show",
        "seed": "seed of a synthetic source",
        "steps, guidance_scale, negative_prompt, replaced_fraction, layers": "edit parameters",
        "checkpoint, checkpoint_fingerprint": "the model and the hash of its content",
        "fit_*": "original to edited pixels: x_edited = x * fit_scale_x + fit_offset_x_px",
    }
    if layout.names_editor:
        of_fpe = next(name for name in meanings if name.startswith("steps,"))
        meanings = {
            ", ".join(METHOD_COLUMNS) if name == of_fpe else name: meaning
            for name, meaning in meanings.items()
        }
    if not layout.edited:
        for name in [name for name in meanings if name.startswith(("steps,", "checkpoint,"))]:
            del meanings[name]
        meanings["editor"] = "none: nothing was edited"
    if layout.keep_source:
        meanings["source"] = "the source as the model saw it"
    if layout.limits_guidance:
        meanings["guidance_interval"] = "shares of the steps between which guidance was on"
    if layout.judged or layout.typed:
        meanings["edit_type"] = "the kind of change that was asked for"
    if layout.judged:
        meanings["verdict, reject_reason"] = "the judge's verdict and its reason"
        meanings[", ".join(SCORE_COLUMNS)] = "scores, see fpe_core/scores/edit_scores.py"
    if layout.gated:
        meanings[GATE_COLUMN] = "PSNR in dB of the source after encoding and decoding"
    meanings |= _annotation_meanings(layout)
    meanings |= dict.fromkeys(layout.labels, "label of the edit")
    meanings |= {
        output: f"the manifest's column {_cell(name)}"
        for name, output in layout.carried_names.items()
    }
    return "\n".join(f"| {_cell(name)} | {meaning} |" for name, meaning in meanings.items())


def _annotation_meanings(layout: MetadataLayout) -> dict[str, str]:
    meanings = {}
    for item in layout.annotations:
        if item.name.startswith("edited_"):
            meanings[item.name] = "boxes in the pixels of the edited image, clipped to it"
        elif item.name.endswith("_verdict"):
            meanings[item.name] = "verdict on each box or mask: keep, review or drop"
        elif item.name.endswith("_structure"):
            meanings[item.name] = "how much of the source's structure the edit keeps there, 0 to 1"
        elif item.name.endswith("_visible"):
            meanings[item.name] = "share of each box or mask that lies in the edited image, 0 to 1"
        else:
            meanings["mask"] = "fitted to the edited image, without loss"
    return meanings


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
