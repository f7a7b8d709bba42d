"""Templates and lists of labels."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job.prompts import PromptsSection
from pipeline.manifest.prompts import PromptPlan, Template, TemplateError

names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8).filter(str.isidentifier)
words = st.text(min_size=1, max_size=10).filter(lambda text: bool(text.strip()))


def plan(target: str, source: str | None = None, **settings: object) -> PromptPlan:
    values = {"target": target, "source": source, **settings}
    return PromptsSection.model_validate(values).to_plan()


def test_a_template_is_filled_from_names() -> None:
    template = Template.parse("a {colour} {shape}, {{really}} {colour}")
    assert template.fields == {"colour", "shape"}
    assert template.fill({"colour": "red", "shape": "cat"}) == "a red cat, {really} red"


@given(st.lists(st.tuples(st.text(max_size=8), names), min_size=1, max_size=5), st.data())
def test_filling_is_replacing_and_nothing_else(
    pieces: list[tuple[str, str]], data: st.DataObject
) -> None:
    values = {name: data.draw(words) for _, name in pieces}
    text = "".join(
        literal.replace("{", "{{").replace("}", "}}") + f"{{{name}}}" for literal, name in pieces
    )
    expected = "".join(literal + values[name] for literal, name in pieces)
    assert Template.parse(text).fill(values) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a {",
        "a }",
        "a {x.y}",
        "a {x[0]}",
        "a {x!r}",
        "a {x:>9}",
        "a {}",
        "a {0}",
        "{a b}",
    ],
)
def test_a_template_has_plain_names_only(text: str) -> None:
    with pytest.raises(TemplateError, match=r"empty|template"):
        Template.parse(text)


@pytest.mark.parametrize("values", [{}, {"x": ""}, {"x": " "}])
def test_a_value_that_is_missing_is_named(values: dict[str, str]) -> None:
    with pytest.raises(TemplateError, match=r"needs \{x\}, which is empty here"):
        Template.parse("a {x}").fill(values)


def test_product_in_the_order_of_the_lists() -> None:
    prompts = plan("{a} {b}", labels={"a": ["1", "2"], "b": ["x", "y"]})
    assert prompts.expand({}) == (
        ("1 x", ("1", "x")),
        ("1 y", ("1", "y")),
        ("2 x", ("2", "x")),
        ("2 y", ("2", "y")),
    )


def test_zip_pairs_the_lists() -> None:
    prompts = plan("{a} {b}", labels={"a": ["1", "2"], "b": ["x", "y"]}, combine="zip")
    assert prompts.expand({}) == (("1 x", ("1", "x")), ("2 y", ("2", "y")))


def test_no_labels_make_one_edit() -> None:
    assert plan("a {shape}").expand({"shape": "cat"}) == (("a cat", ()),)


@given(
    st.dictionaries(
        names, st.lists(words, min_size=1, max_size=4, unique=True), min_size=1, max_size=3
    )
)
def test_every_combination_of_labels_comes_once(labels: dict[str, list[str]]) -> None:
    target = " ".join(f"{{{name}}}" for name in labels)
    edits = plan(target, labels=labels).expand({})
    expected = 1
    for values in labels.values():
        expected *= len(values)
    assert len({chosen for _, chosen in edits}) == len(edits) == expected
    for prompt, chosen in edits:
        assert prompt == " ".join(chosen)


def test_labels_win_over_columns_and_leave_the_old_value_under_another_name() -> None:
    prompts = plan("{colour}, was {source_colour}", labels={"colour": ["red", "blue"]})
    columns = frozenset({"colour", "shape"})
    assert prompts.columns(columns) == {"colour"}
    assert prompts.expand({"colour": "green"}) == (
        ("red, was green", ("red",)),
        ("blue, was green", ("blue",)),
    )


def test_the_edit_that_changes_nothing_is_dropped() -> None:
    prompts = plan("{colour}", labels={"colour": ["red", "blue"]})
    assert [labels for _, labels in prompts.expand({"colour": "red"})] == [("blue",)]
    keeping = plan("{colour}", labels={"colour": ["red", "blue"]}, skip_unchanged=False)
    assert len(keeping.expand({"colour": "red"})) == 2


def test_an_edit_that_changes_one_label_of_two_stays() -> None:
    labels = {"colour": ["red", "blue"], "shape": ["cat"]}
    prompts = plan("{colour} {shape}", labels=labels)
    row = {"colour": "red", "shape": "dog"}
    assert [chosen for _, chosen in prompts.expand(row)] == [("red", "cat"), ("blue", "cat")]
    # A label that is no column has no old value, so it always changes something.
    assert len(prompts.expand({"colour": "red"})) == 2


def test_the_source_prompt_has_the_rows_own_values() -> None:
    prompts = plan("{colour} {shape}", "{colour} {shape}", labels={"colour": ["red"]})
    assert prompts.source_prompt({"colour": "green", "shape": "cat"}) == "green cat"
    assert plan("a").source_prompt({}) is None


def test_a_name_that_is_nothing_is_refused_with_those_that_are() -> None:
    prompts = plan("a {hue} {shape}", labels={"hue": ["red"]})
    with pytest.raises(
        TemplateError, match=r"\{shape\}.*not a label or manifest column.*form, hue"
    ):
        prompts.columns(frozenset({"form"}))
    prompts = plan("a {hue}", "a {hue}", labels={"hue": ["red"]})
    with pytest.raises(TemplateError, match=r"\{hue\}, which is not a column; there are form"):
        prompts.columns(frozenset({"form"}))
    with pytest.raises(TemplateError, match="source_hue"):
        plan("{hue} {source_hue}", labels={"hue": ["red"]}).columns(frozenset({"form"}))
