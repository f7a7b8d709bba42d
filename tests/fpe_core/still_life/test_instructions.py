"""The grammar of instructions, and what a model with instructions is trained on."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from fpe_core import DdimEditing, InstructPix2Pix
from fpe_core.checkpoint.files import CHECKPOINT_DIR
from fpe_core.still_life import FACTORS, counterfactual, sample_scene
from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.instructions import INSTRUCTIONS, instruction

SCENE = counterfactual(sample_scene(1), shape="ring", colour="blue")
ALL = [
    (factor, target, phrasing)
    for factor, targets in FACTORS.items()
    for target in targets
    for phrasing in range(len(INSTRUCTIONS[factor]))
]


def test_the_canonical_instructions() -> None:
    said = [
        instruction(SCENE, factor, target)
        for factor, target in [
            ("shape", "heart"),
            ("colour", "red"),
            ("material", "striped"),
            ("background", "white"),
            ("style", "sketch"),
        ]
    ]
    assert said == [
        "turn the ring into a heart",
        "make it red",
        "make it striped",
        "put it on a white background",
        "turn it into a sketch",
    ]


@pytest.mark.parametrize(("factor", "target", "phrasing"), ALL)
def test_an_instruction_reads_one_way(factor: str, target: str, phrasing: int) -> None:
    """The last word that belongs to a factor is the value asked for."""
    words = instruction(SCENE, factor, target, phrasing).split()
    of_factors = {word: name for name, values in FACTORS.items() for word in values}
    last = [word for word in words if word in of_factors][-1]
    assert (of_factors[last], last) == (factor, target)


def test_every_instruction_fits_the_text_encoder() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(CHECKPOINT_DIR / "tokenizer")
    longest = max(len(tokenizer(instruction(SCENE, *each)).input_ids) for each in ALL)
    assert 10 < longest <= tokenizer.model_max_length == 32


@pytest.mark.parametrize(
    ("factor", "target", "phrasing", "message"),
    [
        ("size", "big", 0, "no factor 'size'"),
        ("colour", "heart", 0, "no factor 'colour' with a value 'heart'"),
        ("colour", "red", 4, "phrasing 4 does not exist; choose 0 to 3"),
    ],
)
def test_what_does_not_exist_is_refused(factor, target, phrasing, message) -> None:
    with pytest.raises(ValueError, match=message):
        instruction(SCENE, factor, target, phrasing)


def test_a_method_is_told_what_it_reads() -> None:
    edit = edits_of_scene(2000, ["background"])[0]
    assert edit.prompt_for(DdimEditing()) == edit.target_prompt
    said = edit.prompt_for(InstructPix2Pix())
    assert said == edit.instruction == f"put it on a {edit.target_value} background"
