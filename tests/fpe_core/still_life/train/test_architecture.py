"""The tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from fpe_core.checkpoint.files import CHECKPOINT_DIR
from fpe_core.still_life import caption, sample_scene
from fpe_core.still_life.scene import PHRASINGS, grammar_words
from fpe_core.still_life.train.architecture import TOKENS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_grammar_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for word in grammar_words():
        assert tokenizer.tokenize(word) == [word + "</w>"]


@pytest.mark.parametrize("phrasing", range(len(PHRASINGS)))
def test_captions_survive_the_round_trip(tokenizer: CLIPTokenizer, phrasing: int) -> None:
    for seed in range(10):
        text = caption(sample_scene(seed), phrasing)
        ids = tokenizer(text).input_ids
        assert len(ids) <= TOKENS
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == text


@pytest.mark.parametrize("text", ["a zebra", "größe", "図", "😀 42!"])
def test_any_text_becomes_known_tokens(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert "".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(text.split())


def test_long_text_is_cut_to_the_model_s_length(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("red " * 100, truncation=True).input_ids
    assert len(ids) == TOKENS == tokenizer.model_max_length


def test_the_checkpoint_carries_this_vocabulary(tokenizer: CLIPTokenizer) -> None:
    shipped = CLIPTokenizer.from_pretrained(CHECKPOINT_DIR / "tokenizer")
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.model_max_length == TOKENS


def test_the_vocabulary_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_tokenizer(tmp_path / name)
    for file in ("vocab.json", "merges.txt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
