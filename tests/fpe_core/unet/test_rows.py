"""The rows of a step, whatever they are chunked into."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fpe_core.unet.rows import UNetRows

CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 50))
def test_outputs_of_chunks_are_put_back_in_order(prompts: list[int], limit: int) -> None:
    rows = UNetRows.guided(prompts, [9] * len(prompts), 3.0, CPU)
    evaluated: list[int] = []
    outputs: list[torch.Tensor] = []
    for first in range(0, len(rows), limit):
        chunk = rows.chunk(first, min(first + limit, len(rows)))
        evaluated += chunk.rows
        of_row = (
            chunk.latents if chunk.latent_of_row is None else chunk.latents[chunk.latent_of_row]
        )
        assert of_row.tolist() == [rows.items[row] for row in chunk.rows]
        assert chunk.prompts.tolist() == [rows.prompts[row] for row in chunk.rows]
        outputs.append(torch.tensor(chunk.rows))
    assert sorted(evaluated) == list(range(len(rows)))
    assert rows.in_order(torch.cat(outputs), evaluated).tolist() == list(range(len(rows)))
