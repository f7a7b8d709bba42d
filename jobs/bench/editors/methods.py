"""The methods that are compared, and the settings that are tried for each.

The published column has each method's published parameters, scaled to the model by one rule for
all of them:

- Shares of steps, strengths, thresholds and numbers of samples are kept as they are published.
- Layers are kept relative to the latent grid or by their place in the UNet (`LayersByLevel`,
  `LayersByPart`), which names the published layers at 512 px, and at any other size those of the
  same levels.
- The number of steps, the guidance scale and the negative prompt are the checkpoint's own
  recommendation, the same for every method: published scales are for Stable Diffusion, and a
  published negative prompt is for photographs.
- Every method is given the caption of the source as its source prompt.
- Methods that read instructions edit with a model of their own, which knows the same scenes, and
  are given the instruction in place of the target's caption.

The third column has the tuned parameters, with masks that bind: those of what an edit changes, as
the renderer knows them. An edit of style changes everything, and is not applicable there.

The tuned column has the best of five settings per method (`candidates`), by the benchmark's score
on validation scenes. The published setting is one of the five; the others change one thing at a
time: two changes of the method's own parameters, a lower and a higher guidance scale. A method
without parameters of its own has four other guidance scales. The budget is the same for every
method, and all candidates are in this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpe_core import EditParameters, LayersByLevel, LayersByRange, Proximal
from fpe_core.editors.blended import BlendedLatent
from fpe_core.editors.ddim import DdimEditing
from fpe_core.editors.diffedit import DiffEdit
from fpe_core.editors.fpe import FreePromptEditing
from fpe_core.editors.instruct_pix2pix import InstructPix2Pix
from fpe_core.editors.masactrl import MasaCtrl
from fpe_core.editors.method import EditInputs, EditMethod
from fpe_core.editors.p2p import PromptToPrompt
from fpe_core.editors.pix2pix_zero import Pix2PixZero
from fpe_core.editors.pnp import PlugAndPlay
from fpe_core.editors.sdedit import SdEdit
from fpe_core.editors.shape_guided import ShapeGuided
from fpe_core.errors import ParameterError
from fpe_core.layer_rules import LayersByPart
from fpe_core.still_life.benchmark.benchmark import Arm
from fpe_core.still_life.benchmark.edit_inputs import true_inputs
from fpe_core.still_life.benchmark.edits import BenchmarkEdit

GUIDANCE_FACTORS = (0.75, 1.5)
"""Lower and higher guidance, as factors of the checkpoint's own scale."""

_MORE_FACTORS = (0.5, 0.75, 1.5, 2.0)
"""Of methods that have no parameters of their own."""


@dataclass(frozen=True)
class Compared:
    """One way of editing to compare.

    Attributes:
        name: as in tables.
        published: the method with its published parameters.
        changed: two other settings of its parameters to try; none if it has no parameters.
        others: `EditParameters` of every setting, such as an inversion of another kind.
        changed_others: instead of `changed`, two other settings of these to try.
        given: attributes of `EditInputs` that its edits are given, as the renderer knows them.
        needs: those without which an edit is not applicable, although the method can do without.
    """

    name: str
    published: EditMethod
    changed: tuple[EditMethod, ...] = ()
    others: tuple[tuple[str, Any], ...] = ()
    changed_others: tuple[tuple[str, Any], ...] = ()
    given: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    @property
    def reads_instructions(self) -> bool:
        """Whether it edits with the model that reads instructions."""
        return self.published.prompts == "instruction"

    def inputs(self, edit: BenchmarkEdit, size_px: int) -> EditInputs:
        """What an edit is given."""
        known = true_inputs(edit, size_px)
        return EditInputs(**{name: getattr(known, name) for name in sorted(self.given)})

    def candidates(self, recommended: EditParameters) -> list[EditParameters]:
        """Five settings, the published one first.

        `recommended`: the checkpoint's own parameters, of which steps, guidance scale, negative
        prompt and size are taken.
        """
        first = dataclasses.replace(recommended, **dict(self.others)).edited_by(self.published)
        has_own = self.changed or self.changed_others
        factors = GUIDANCE_FACTORS if has_own else _MORE_FACTORS
        scales = [factor * recommended.guidance_scale for factor in factors]
        return [
            first,
            *(first.edited_by(method) for method in self.changed),
            *(dataclasses.replace(first, **{name: value}) for name, value in self.changed_others),
            *(dataclasses.replace(first, guidance_scale=scale) for scale in scales),
        ]

    def bound(self) -> Compared:
        """The same with the renderer's masks, for parameters whose edits they bind."""
        return dataclasses.replace(self, given=self.given | _MASK, needs=self.needs | _MASK)

    def arm(self, parameters: EditParameters) -> Arm:
        """The benchmark's arm with one of the settings."""
        return Arm(self.name, parameters, self.inputs, self.needs)


_SEED, _MASK, _WORDS = (frozenset({name}) for name in ("seed", "mask", "blend_words"))
_NO_NEGATIVE = (("negative_prompt", ""),)  # where unconditional rows have one of their own

METHODS = (
    Compared(
        "fpe",
        FreePromptEditing(LayersByLevel(2), 0.8),  # the authors' code; their article says 4-14
        (
            FreePromptEditing(LayersByRange(4, 14), 0.8),
            FreePromptEditing(LayersByLevel(1), 0.8),
        ),
    ),
    Compared("ddim", DdimEditing()),
    Compared("sdedit", SdEdit(0.8), (SdEdit(0.6), SdEdit(0.4)), given=_SEED),
    Compared(
        "p2p",
        PromptToPrompt(),
        (PromptToPrompt(cross_fraction=0.8), PromptToPrompt(layers=LayersByLevel(1))),
    ),
    Compared(
        "p2p, words",
        PromptToPrompt(blend_word_scale=2.0),
        (
            PromptToPrompt(blend_word_scale=2.0, blend_level=2),
            PromptToPrompt(blend_word_scale=2.0, layers=LayersByLevel(1)),
        ),
        given=_WORDS,
        needs=_WORDS,
    ),
    Compared(
        "pnp",
        PlugAndPlay(),
        (PlugAndPlay(attention_fraction=0.8), PlugAndPlay(residual_fraction=0.4)),
    ),
    Compared(
        "masactrl",
        MasaCtrl(),
        (MasaCtrl(steps=(0.4, 1.0)), MasaCtrl(layers=LayersByPart("up", first=7))),
    ),
    Compared(
        "masactrl+",
        MasaCtrl(keys="appended"),
        (
            MasaCtrl(keys="appended", steps=(0.4, 1.0)),
            MasaCtrl(keys="appended", layers=LayersByPart("up", first=7)),
        ),
    ),
    Compared(
        "diffedit",
        DiffEdit(),
        (DiffEdit(encode_ratio=0.6), DiffEdit(mask_threshold=0.25)),
        given=_SEED,
    ),
    Compared("blended", BlendedLatent(), given=_SEED | _MASK),
    Compared(
        "pix2pix_zero",
        Pix2PixZero(),
        (Pix2PixZero(0.03), Pix2PixZero(0.3)),
        others=_NO_NEGATIVE,
    ),
    Compared(
        "shape_guided",
        ShapeGuided(2.5),
        (ShapeGuided(1.0), ShapeGuided(4.0)),
        given=_MASK | _WORDS,
        needs=_MASK | _WORDS,
    ),
    Compared(
        "instruct_pix2pix",
        InstructPix2Pix(1.5),
        (InstructPix2Pix(1.0), InstructPix2Pix(2.0)),
        given=_SEED,
    ),
    Compared(
        "ddim, edit-friendly",
        DdimEditing(),
        others=(("inversion", "edit_friendly"),),
        changed_others=(("skipped_fraction", 0.2), ("skipped_fraction", 0.5)),
    ),
    Compared(
        "p2p, proximal",
        PromptToPrompt(),
        others=(*_NO_NEGATIVE, ("inversion", "negative_prompt"), ("proximal", Proximal())),
        changed_others=(("proximal", Proximal("l1")), ("proximal", Proximal(quantile=0.4))),
    ),
    Compared(
        "fpe, null-text",
        FreePromptEditing(LayersByLevel(2), 0.8),
        (
            FreePromptEditing(LayersByRange(4, 14), 0.8),
            FreePromptEditing(LayersByLevel(1), 0.8),
        ),
        others=(*_NO_NEGATIVE, ("inversion", "null_text")),
    ),
)
"""In the order of tables: `p2p` refines, with `words` it also blends words; `masactrl+` appends the
source's keys and values to the edit's own; the last three are methods with another inversion."""

METHOD_NAMES = tuple(each.name for each in METHODS)


def methods_named(names: Sequence[str]) -> tuple[Compared, ...]:
    """Some of `METHODS`, in their order; all of them without names.

    Raises ParameterError for a name that none of them has.
    """
    if unknown := sorted(set(names) - set(METHOD_NAMES)):
        raise ParameterError(
            f"nothing to compare is called {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, METHOD_NAMES))}"
        )
    return tuple(each for each in METHODS if not names or each.name in names)
