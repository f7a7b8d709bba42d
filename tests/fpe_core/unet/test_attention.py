from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from fpe_core import LayersByLevel, LayersByPart, LayersByRange, LayersByTokens, ParameterError
from fpe_core.unet.attention import select_layers, self_attention_layers
from fpe_core.unet.exchange import Exchange, Handed, Projections, Recorded, Site
from fpe_core.unet.pass_rows import PassRows
from fpe_core.unet.prompts import PromptRows
from tests.builders.tiny_checkpoint import SELF_ATTENTION_TOKENS


def layers_run(unet, height: int, width: int) -> list[tuple[str, int]]:
    """(processor name, tokens) of every self-attention layer as a forward pass runs them."""
    seen: list[tuple[str, int]] = []
    handles = [
        module.register_forward_pre_hook(
            lambda _m, args, kwargs, name=name: seen.append(
                (f"{name}.processor", (args[0] if args else kwargs["hidden_states"]).shape[1])
            ),
            with_kwargs=True,
        )
        for name, module in unet.named_modules()
        if name.endswith("attn1")
    ]
    with torch.no_grad():
        unet(
            torch.zeros(1, 4, height, width),
            1,
            encoder_hidden_states=torch.zeros(1, 77, unet.config.cross_attention_dim),
        )
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (9, 13), (12, 20)])
def test_layers_are_in_order_of_execution_with_their_tokens(tiny, height, width):
    layers = self_attention_layers(tiny.unet, height, width)
    assert [(x.processor_name, x.tokens) for x in layers] == layers_run(tiny.unet, height, width)
    assert [x.position for x in layers] == list(range(1, 17))


def test_the_rules_of_sd_15():
    """At 512, 256 and 1024 px, on SD 1.5's own topology (tokens do not depend on the widths)."""
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )

    def chosen(size_px: int, rule) -> list[int]:
        layers = self_attention_layers(unet, size_px // 8, size_px // 8)
        return [layer.position for layer in select_layers(layers, rule)]

    assert chosen(512, LayersByTokens(1024)) == list(range(3, 14))
    assert chosen(256, LayersByTokens(1024)) == list(range(1, 17))
    assert chosen(1024, LayersByTokens(1024)) == [5, 6, 7, 8, 9, 10]
    assert chosen(512, LayersByRange(4, 14)) == list(range(4, 15))
    assert chosen(512, LayersByTokens(0)) == []
    for size_px in (256, 512, 768, 1024):
        assert chosen(size_px, LayersByLevel(1)) == list(range(1, 17))
        assert chosen(size_px, LayersByLevel(2)) == list(range(3, 14))
        assert chosen(size_px, LayersByLevel(4)) == [5, 6, 7, 8, 9, 10]
        assert chosen(size_px, LayersByLevel(8)) == [7]
        assert chosen(size_px, LayersByPart("up", first=2)) == list(range(9, 17))
        assert chosen(size_px, LayersByPart("up", first=4)) == list(range(11, 17))
        assert chosen(size_px, LayersByPart("down", last=2)) == [1, 2]
        assert chosen(size_px, LayersByPart("middle")) == [7]
    with pytest.raises(ParameterError, match="at most 16"):
        chosen(512, LayersByRange(1, 17))
    with pytest.raises(ParameterError, match="this checkpoint has 1 in that part"):
        chosen(512, LayersByPart("middle", first=2))


def test_the_tiny_model_has_sd_s_shape(tiny):
    layers = self_attention_layers(tiny.unet, 8, 8)
    assert tuple(layer.tokens for layer in layers) == SELF_ATTENTION_TOKENS


def test_attending_with_source_q_and_k_is_exchanging_the_map(tiny):
    """softmax(Q_s K_s^T / sqrt d) V_t, with the map written out, to 1e-6 in float32."""
    layer = self_attention_layers(tiny.unet, 8, 8)[2]
    attn = tiny.unet.get_submodule(layer.processor_name.removesuffix(".processor"))
    source, target = torch.randn(2, 1, 16, attn.to_q.in_features)
    prompts, place = PromptRows(torch.zeros(0), ()), layer.attention

    def attended(hidden, first_row=0, given=()):
        sites = (Site(place, "qk", first_row),)
        rows = PassRows(prompts, None, Exchange(sites, given))
        rows._next = place
        return rows.attend_self(attn, hidden), rows.handed.projections

    def heads(x):
        return x.view(1, 16, attn.heads, -1).transpose(1, 2)

    with torch.no_grad():
        _, maps = attended(source)
        replaced, _ = attended(torch.cat([target, target]), first_row=1, given=maps)
        query, key = heads(attn.to_q(source)), heads(attn.to_k(source))
        explicit = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1)
        out = (explicit @ heads(attn.to_v(target))).transpose(1, 2).reshape(1, 16, -1)
        expected = attn.to_out[0](out)
        assert (replaced[1] - expected[0]).abs().max() < 1e-6
        own = attn(target)[0]
        assert (replaced[0] - own).abs().max() < 1e-6, "the unconditional row keeps its own"
    assert (replaced[0] - replaced[1]).abs().max() > 1e-3


def test_what_several_chunks_hand_over_is_one_after_the_other():
    recorded = Recorded()
    rows = [torch.randn(2, 16, 8), torch.randn(1, 16, 8)]
    for chunk in rows:
        maps = tuple(Projections(chunk + n, chunk - n) for n in range(4))
        recorded.record(Handed(maps, (chunk * 2,)))
    for _ in range(2):
        wanted, index = torch.cat(rows)[[2, 0, 2]], torch.tensor([2, 0, 2])
        for n, projections in enumerate(recorded.all.projections):
            made = projections.rows(index)
            assert torch.equal(made.query, wanted + n)
            assert torch.equal(made.key, wanted - n)
            assert made.value is None
        assert torch.equal(recorded.all.residuals[0][index], wanted * 2)
    recorded.clear()
    recorded.record(Handed((Projections(rows[1], rows[1]),)))
    assert torch.equal(recorded.all.projections[0].query, rows[1])
