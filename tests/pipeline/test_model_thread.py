"""One team of OpenMP threads in an editing worker, whatever thread a block is in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fpe_core import Editor, load_checkpoint
from pipeline.model_thread import ModelThread, ThisThread, loop_alone
from pipeline.phase_clock import ClockedEditor


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """A thread that is neither pytest's nor a model's."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def raises() -> None:
    raise ValueError("on purpose")


@pytest.mark.parametrize("make", [ModelThread, ThisThread])
def test_calls_have_their_results_and_errors(make: Callable[[], Any]) -> None:
    thread = make()
    assert thread.run(lambda: 7) == 7
    assert thread.submit(pow, 2, 5).result() == 32
    with pytest.raises(ValueError, match="on purpose"):
        thread.run(raises)
    assert isinstance(thread.submit(raises).exception(), ValueError)


def test_all_calls_are_one_thread_s_and_it_may_call_itself(elsewhere: ThreadPoolExecutor) -> None:
    thread = ModelThread()
    seen = [thread.run(threading.get_ident) for _ in range(3)]
    seen.append(elsewhere.submit(thread.run, threading.get_ident).result())
    seen.append(thread.run(lambda: thread.run(threading.get_ident)))
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


@pytest.mark.usefixtures("three_threads")
def test_a_thread_that_loops_alone_has_no_team_and_the_others_keep_theirs(
    elsewhere: ThreadPoolExecutor,
) -> None:
    thread = ModelThread()
    assert thread.run(torch.get_num_threads) == 3
    elsewhere.submit(loop_alone).result()
    assert elsewhere.submit(torch.get_num_threads).result() == 1
    assert thread.run(torch.get_num_threads) == torch.get_num_threads() == 3


def test_an_editor_computes_in_the_thread_it_was_given(
    tiny_checkpoint: Path, picture: Callable[..., Image.Image]
) -> None:
    thread = ModelThread()
    checkpoint = load_checkpoint(tiny_checkpoint, device="cpu")
    editor, seen = ClockedEditor(checkpoint, thread=thread), set[int]()
    networks = (
        checkpoint.text_encoder,
        editor.unet,
        editor.autoencoder.encoder,
        editor.autoencoder.decoder,
    )
    for network in networks:
        network.register_forward_hook(lambda *_: seen.add(threading.get_ident()))
    parameters = replace(checkpoint.default_parameters, steps=2)
    inversion = editor.invert([picture(1)], parameters=parameters)
    made = editor.edit(inversion, [["a red cat"]]).edits[0][0]
    editor.through_autoencoder([picture(1)], parameters)
    editor.step_back(inversion, 1)
    editor.decode(inversion.trajectory[:, 0], parameters)
    assert seen == {thread.run(threading.get_ident)}
    plain = Editor(load_checkpoint(tiny_checkpoint, device="cpu"))
    expected = plain.edit(plain.invert([picture(1)], parameters=parameters), [["a red cat"]])
    assert made.image.tobytes() == expected.edits[0][0].image.tobytes()
