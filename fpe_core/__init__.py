"""Free-Prompt-Editing on tensors: load a checkpoint, invert images, edit them with text.

    checkpoint = load_checkpoint("builtin:still-life")
    editor = Editor(checkpoint)
    inversion = editor.invert(images, source_prompts)
    result = editor.edit(inversion, [["a photo of a green plain heart on a white background"]])

The files next to this one are the algorithm. Read sampling.py first, the procedure on one screen;
then injection.py (what an editing method is made of), edit_rows.py (which rows of the UNet each
step takes), schedule.py (DDIM in both directions) and inversion.py (what an edit starts from).
reference.py is Free-Prompt-Editing written literally, which the tests compare with. editor.py puts
it together.

editors/ has the methods, one file each. unet/ makes it fast. checkpoint/ loads models, image/
decodes and fits images, scores/ and judging/ say how good an edit is, and still_life/ is the
built-in model with its benchmark.

The package builds on torch, diffusers and transformers. It does not depend on Ray, Arrow or any
storage.

A public name's module is imported when the name is first used, so code that only needs a parameter,
an error or a fingerprint does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpe_core.checkpoint.add_on_files import checkpoint_fingerprint
    from fpe_core.checkpoint.add_ons import Embedding, Lora
    from fpe_core.checkpoint.files import checkpoint_defaults
    from fpe_core.checkpoint.load import Checkpoint, load_checkpoint
    from fpe_core.editor import Editor
    from fpe_core.editors.blended import BlendedLatent
    from fpe_core.editors.ddim import DdimEditing
    from fpe_core.editors.diffedit import DiffEdit
    from fpe_core.editors.fpe import FreePromptEditing
    from fpe_core.editors.instruct_pix2pix import InstructPix2Pix
    from fpe_core.editors.masactrl import MasaCtrl
    from fpe_core.editors.method import (
        EditInputs,
        EditMethod,
        method_from_dict,
        method_named,
        method_names,
    )
    from fpe_core.editors.p2p import PromptToPrompt
    from fpe_core.editors.pix2pix_zero import Pix2PixZero
    from fpe_core.editors.pnp import PlugAndPlay
    from fpe_core.editors.region_prompts import RegionPrompts
    from fpe_core.editors.sdedit import SdEdit
    from fpe_core.editors.shape_guided import ShapeGuided
    from fpe_core.errors import (
        CheckpointError,
        FPEError,
        ImageDecodeError,
        ImageTooLargeError,
        NotApplicableError,
        ParameterError,
        PromptError,
        RowsOutOfMemoryError,
    )
    from fpe_core.image.decode import decode_image
    from fpe_core.image.fit import Fit, FittedImage, fit_image
    from fpe_core.injection import (
        AttentionRegions,
        Blend,
        CrossGuidance,
        DifferenceMask,
        EditRule,
        Injection,
        ResidualInjection,
        Start,
        WordMask,
    )
    from fpe_core.inside import Inside
    from fpe_core.inversion import Edit, EditResult, Inversion, SyntheticSources
    from fpe_core.layer_rules import LayersByLevel, LayersByPart, LayersByRange, LayersByTokens
    from fpe_core.parameters import EditParameters
    from fpe_core.proximal import Proximal
    from fpe_core.row_formulas import RowCounts, row_counts
    from fpe_core.scores.clip import (
        ClipScorer,
        directional_similarity,
        image_similarity,
        load_scorer,
        text_score,
    )
    from fpe_core.scores.edit_scores import SCORES, EditScores
    from fpe_core.scores.lpips import LpipsModel, load_lpips
    from fpe_core.scores.pixels import (
        changed_share,
        clipped_shift,
        psnr_db,
        saturation_shift,
        sharpness_ratio,
        ssim,
    )
    from fpe_core.scores.score import score_edits
    from fpe_core.scores.structure import StructureModel, load_structure_model, structure_distance

# Part of every edit's id. Increased by any change after which the same edit gives another image.
ALGORITHM_VERSION = "2"

__all__ = [
    "ALGORITHM_VERSION",
    "SCORES",
    "AttentionRegions",
    "Blend",
    "BlendedLatent",
    "Checkpoint",
    "CheckpointError",
    "ClipScorer",
    "CrossGuidance",
    "DdimEditing",
    "DiffEdit",
    "DifferenceMask",
    "Edit",
    "EditInputs",
    "EditMethod",
    "EditParameters",
    "EditResult",
    "EditRule",
    "EditScores",
    "Editor",
    "Embedding",
    "FPEError",
    "Fit",
    "FittedImage",
    "FreePromptEditing",
    "ImageDecodeError",
    "ImageTooLargeError",
    "Injection",
    "Inside",
    "InstructPix2Pix",
    "Inversion",
    "LayersByLevel",
    "LayersByPart",
    "LayersByRange",
    "LayersByTokens",
    "Lora",
    "LpipsModel",
    "MasaCtrl",
    "NotApplicableError",
    "ParameterError",
    "Pix2PixZero",
    "PlugAndPlay",
    "PromptError",
    "PromptToPrompt",
    "Proximal",
    "RegionPrompts",
    "ResidualInjection",
    "RowCounts",
    "RowsOutOfMemoryError",
    "SdEdit",
    "ShapeGuided",
    "Start",
    "StructureModel",
    "SyntheticSources",
    "WordMask",
    "changed_share",
    "checkpoint_defaults",
    "checkpoint_fingerprint",
    "clipped_shift",
    "decode_image",
    "directional_similarity",
    "fit_image",
    "image_similarity",
    "load_checkpoint",
    "load_lpips",
    "load_scorer",
    "load_structure_model",
    "method_from_dict",
    "method_named",
    "method_names",
    "psnr_db",
    "row_counts",
    "saturation_shift",
    "score_edits",
    "sharpness_ratio",
    "ssim",
    "structure_distance",
    "text_score",
]

_NAMES_OF_MODULE = {
    "fpe_core.checkpoint.add_on_files": ("checkpoint_fingerprint",),
    "fpe_core.checkpoint.add_ons": (
        "Embedding",
        "Lora",
    ),
    "fpe_core.checkpoint.files": ("checkpoint_defaults",),
    "fpe_core.checkpoint.load": (
        "Checkpoint",
        "load_checkpoint",
    ),
    "fpe_core.editor": ("Editor",),
    "fpe_core.editors.blended": ("BlendedLatent",),
    "fpe_core.editors.ddim": ("DdimEditing",),
    "fpe_core.editors.diffedit": ("DiffEdit",),
    "fpe_core.editors.fpe": ("FreePromptEditing",),
    "fpe_core.editors.instruct_pix2pix": ("InstructPix2Pix",),
    "fpe_core.editors.masactrl": ("MasaCtrl",),
    "fpe_core.editors.method": (
        "EditInputs",
        "EditMethod",
        "method_from_dict",
        "method_named",
        "method_names",
    ),
    "fpe_core.editors.p2p": ("PromptToPrompt",),
    "fpe_core.editors.pix2pix_zero": ("Pix2PixZero",),
    "fpe_core.editors.pnp": ("PlugAndPlay",),
    "fpe_core.editors.region_prompts": ("RegionPrompts",),
    "fpe_core.editors.sdedit": ("SdEdit",),
    "fpe_core.editors.shape_guided": ("ShapeGuided",),
    "fpe_core.errors": (
        "CheckpointError",
        "FPEError",
        "ImageDecodeError",
        "ImageTooLargeError",
        "NotApplicableError",
        "ParameterError",
        "PromptError",
        "RowsOutOfMemoryError",
    ),
    "fpe_core.image.decode": ("decode_image",),
    "fpe_core.image.fit": (
        "Fit",
        "FittedImage",
        "fit_image",
    ),
    "fpe_core.injection": (
        "AttentionRegions",
        "EditRule",
        "Injection",
        "ResidualInjection",
        "Start",
        "Blend",
        "CrossGuidance",
        "DifferenceMask",
        "WordMask",
    ),
    "fpe_core.inside": ("Inside",),
    "fpe_core.inversion": (
        "Edit",
        "EditResult",
        "Inversion",
        "SyntheticSources",
    ),
    "fpe_core.layer_rules": (
        "LayersByLevel",
        "LayersByPart",
        "LayersByRange",
        "LayersByTokens",
    ),
    "fpe_core.parameters": ("EditParameters",),
    "fpe_core.proximal": ("Proximal",),
    "fpe_core.row_formulas": (
        "RowCounts",
        "row_counts",
    ),
    "fpe_core.scores.clip": (
        "ClipScorer",
        "directional_similarity",
        "image_similarity",
        "load_scorer",
        "text_score",
    ),
    "fpe_core.scores.edit_scores": (
        "SCORES",
        "EditScores",
    ),
    "fpe_core.scores.lpips": (
        "LpipsModel",
        "load_lpips",
    ),
    "fpe_core.scores.pixels": (
        "changed_share",
        "clipped_shift",
        "psnr_db",
        "saturation_shift",
        "sharpness_ratio",
        "ssim",
    ),
    "fpe_core.scores.score": ("score_edits",),
    "fpe_core.scores.structure": (
        "StructureModel",
        "load_structure_model",
        "structure_distance",
    ),
}
"""Module to the public names it defines; the same as the imports above."""


def __getattr__(name: str) -> Any:
    for module, names in _NAMES_OF_MODULE.items():
        if name in names:
            found = globals()[name] = getattr(import_module(module), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
