"""Editing of many images with many prompts at once, by any method of `fpe_core.editors`.

    inversion = editor.invert(images, source_prompts)
    result = editor.edit(inversion, [["a red car", "a blue car"], ["a snowy street"]])

UNet rows of one source with N edits by Free-Prompt-Editing (CVPR 2024, arXiv 2403.03431), for T
steps of which R replace attention maps (`fpe_core.row_formulas` counts them for every method):

    real source         T + R + 1 + (2 T - 1) N     inversion, source rows, two rows per edit and
                                                    step
    synthetic source    2 T + 1 + (2 T - 1) N       the source is sampled with guidance together
                                                    with its edits

Outside the guidance interval neither an edit nor a synthetic source has an unconditional row: if G
of the T steps are guided, 2 T becomes T + G above. Without guidance (scale 1) a real source takes
T + R + T N rows and a synthetic one T + T N.

At the first step all edits of a source have the same latent, so they share one unconditional row.
It is the 1 in the formulas, and absent if the first step is not guided. The source's own row is
evaluated once per step and shared by all its edits, whatever the row limit. The R rows of a real
source stop at the last replaced layer, because only their maps are needed; each still counts as a
row.

A row costs less than a pass through diffusers' UNet: rows with the same latent are computed once
until the first cross-attention (`fpe_core.unet.forward`), replaced layers compute no query and key
of the target, and the prompts' keys and values are computed before the first step
(`fpe_core.unet.prompts`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fpe_core.bound_edits import bound_images, bound_inputs
from fpe_core.checkpoint.autoencoder import Autoencoder, latent_dtype, latent_shape
from fpe_core.checkpoint.load import Checkpoint
from fpe_core.cross_guidance import sample_cross_guided
from fpe_core.edit_call import (
    finite_sources,
    inputs_of,
    masks_of,
    null_text_of,
    prompts_of,
    require_agreement,
    require_one_each,
)
from fpe_core.edit_regions import cut_off, region_prompts_of, split_regions, texts_of
from fpe_core.edit_rows import AskedEdit, RuleSites
from fpe_core.edit_words import EditWords, mix_words
from fpe_core.editors.method import EditInputs
from fpe_core.errors import NotApplicableError, ParameterError
from fpe_core.family_limits import require_family
from fpe_core.image.fit import Fit, fit_image
from fpe_core.injection import EditRule
from fpe_core.inversion import (
    Edit,
    EditResult,
    Inversion,
    Sources,
    SyntheticSources,
)
from fpe_core.inversion_kinds import inversion_prompts, invert_by
from fpe_core.null_text import NullText, optimise_null_text
from fpe_core.parameters import EditParameters
from fpe_core.sampling import Sampled, sample_edits
from fpe_core.schedule import ddim_schedule, seeded_noise
from fpe_core.size_ids import SizeIds, size_ids_of
from fpe_core.unet.attention import self_attention_layers
from fpe_core.unet.call import UNetCall
from fpe_core.unet.denoiser import Denoiser
from fpe_core.unet.prompts import EncodedPrompts, encode_prompts
from fpe_core.unet.row_limit import RowLimit, rows_that_fit
from fpe_core.unet.text_encoders import token_ids


class Editor:
    """Edits images with one checkpoint.

    Everything an edit needs is passed in; between calls the editor only keeps its row limits.

    Attributes:
        checkpoint: the model.
        unet, autoencoder: its networks, as modules that accept torch's hooks.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_rows: int | None = None,
        memory_share: float = 1.0,
    ) -> None:
        """
        Args:
            checkpoint: the model; several editors may share one, but not at the same time.
            max_rows: upper limit of rows per UNet call; None: as many as memory allows. The limit
                is halved whenever memory runs out.
            memory_share: share of the device's memory that this editor may use, 0..1 (on a CPU, of
                the free memory).

        Raises:
            ParameterError: `max_rows` below 1.
            CheckpointError: a UNet that is not of Stable Diffusion's kind.
        """
        if max_rows is not None and max_rows < 1:
            raise ParameterError(f"max_rows must be >= 1, got {max_rows}")
        self.checkpoint = checkpoint
        self.unet = UNetCall(checkpoint.unet)
        self.autoencoder = Autoencoder(checkpoint)
        self._max_rows = max_rows
        self._memory_share = memory_share
        self._limits: dict[tuple[int, int], tuple[RowLimit, RowLimit]] = {}
        self._latent_dtype = latent_dtype(checkpoint)

    @property
    def unet_rows(self) -> int:
        """UNet rows evaluated so far, including those of calls that raised."""
        return sum(unet.evaluated for unet, _ in [*self._limits.values()])

    @torch.inference_mode()
    def invert(
        self,
        images: Sequence[Image.Image],
        source_prompts: Sequence[str] | None = None,
        parameters: EditParameters | None = None,
        *,
        fit: str = "crop",
        fits: Sequence[Fit] | None = None,
    ) -> Inversion:
        """Walks images up to noise by the parameters' inversion, as far as the editor needs.

        Args:
            images: of any mode, size and orientation; fitted to the parameters' size (`fit_image`).
            source_prompts: what each image shows; None or "" for no prompt.
            parameters: None takes the checkpoint's recommendation.
            fit: "crop" or "pad", see `fpe_core.image.fit`.
            fits: of images that are fitted already, how they were; None: they are fitted here.

        Returns:
            the trajectories, one per image, in order.

        Raises:
            ParameterError, PromptError, ImageDecodeError, RowsOutOfMemoryError.
        """
        parameters = parameters or self.checkpoint.default_parameters
        prompts = tuple(source_prompts) if source_prompts is not None else ("",) * len(images)
        require_one_each("source prompts", prompts, "images", images)
        self._require_family(parameters)
        schedule = ddim_schedule(self.checkpoint.scheduler_config, parameters.steps)
        unet_limit, vae_limit = self._row_limits(parameters)
        rows_before = unet_limit.evaluated
        fitted = [fit_image(i, parameters.width_px, parameters.height_px, fit) for i in images]
        if fits is not None:
            require_one_each("fits", fits, "images", images)
            fitted = [replace(each, fit=own) for each, own in zip(fitted, fits, strict=True)]
        z = self._zeros(parameters)
        if fitted:
            z = self.autoencoder.encode([f.image for f in fitted], vae_limit)
        sizes = [
            size_ids_of(each.fit, parameters.width_px, parameters.height_px) for each in fitted
        ]
        own = zip(prompts, sizes, strict=True)
        text = self._encode_prompts(
            [*own, *itertools.product(inversion_prompts(parameters), sizes)]
        )
        denoiser = Denoiser(self.unet, text, unet_limit, self._latent_dtype)
        trajectory, noise_maps = invert_by(
            parameters,
            denoiser,
            schedule,
            z,
            images=[f.image for f in fitted],
            prompts=prompts,
            sizes=sizes,
        )
        null_text = None
        if parameters.inversion == "null_text" and fitted:
            null_text = self._null_text(trajectory, prompts, parameters)
        return Inversion(
            trajectory=trajectory,
            images=tuple(f.image for f in fitted),
            fits=tuple(f.fit for f in fitted),
            source_prompts=prompts,
            parameters=parameters,
            diverged=tuple(
                not finite for finite in finite_sources(trajectory, null_text, noise_maps)
            ),
            truncated_prompts=tuple(text.truncated.get(prompt, "") for prompt in prompts),
            unet_rows=unet_limit.evaluated - rows_before,
            null_text=null_text,
            noise_maps=noise_maps,
        )

    def _null_text(
        self, trajectory: Tensor, prompts: Sequence[str], parameters: EditParameters
    ) -> NullText:
        """The embeddings of the unconditional rows. Raises RowsOutOfMemoryError."""
        text = self._encode_prompts([(prompt, None) for prompt in ("", *prompts)])
        limit, _ = self._row_limits(parameters)
        # A row with its backward pass takes several times the memory of one without.
        at_once = RowLimit(max(1, limit.rows // 8))
        made, rows = optimise_null_text(
            self._exact_unet,
            ddim_schedule(self.checkpoint.scheduler_config, parameters.steps),
            trajectory,
            prompts=text.embeddings[[text.of(prompt) for prompt in prompts]],
            empty=text.embeddings[text.of("")],
            guidance_scale=parameters.guidance_scale,
            guided_steps=parameters.guided_steps,
            sources_at_once=at_once,
        )
        limit.evaluated += rows
        return made

    @cached_property
    def _exact_unet(self) -> Any:
        """The UNet in float32 or wider, for gradients; a copy of a narrower one."""
        unet = self.checkpoint.unet
        exact = torch.promote_types(unet.dtype, torch.float32)
        if exact == unet.dtype:
            return unet
        with torch.inference_mode(mode=False):
            return copy.deepcopy(unet).to(exact)

    def synthesise(
        self,
        source_prompts: Sequence[str],
        seeds: Sequence[int],
        parameters: EditParameters | None = None,
    ) -> SyntheticSources:
        """Sources that `edit` samples, each from a prompt and a seed; evaluates no UNet row."""
        parameters = parameters or self.checkpoint.default_parameters
        require_one_each("seeds", seeds, "source prompts", source_prompts)
        noise = self._zeros(parameters)
        if seeds:
            shape = latent_shape(self.checkpoint, parameters)
            noise = torch.stack([seeded_noise(seed, shape) for seed in seeds]).to(noise)
        return SyntheticSources(
            noise=noise,
            source_prompts=tuple(source_prompts),
            seeds=tuple(seeds),
            parameters=parameters,
        )

    @torch.inference_mode()
    def through_autoencoder(
        self, images: Sequence[Image.Image], parameters: EditParameters
    ) -> tuple[Image.Image, ...]:
        """Images of the parameters' size encoded and decoded, RGB; costs no UNet row.

        Values that are not finite become 0. Raises RowsOutOfMemoryError.
        """
        if not images:
            return ()
        _, limit = self._row_limits(parameters)
        decoded, _ = self.autoencoder.decode(self.autoencoder.encode(images, limit), limit)
        return decoded

    @torch.inference_mode()
    def edit(
        self,
        sources: Sources,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters | None = None,
        inputs: Sequence[Sequence[EditInputs]] | None = None,
    ) -> EditResult:
        """Edits each source once per target prompt.

        Args:
            sources: from `invert` or `synthesise`.
            target_prompts: per source, any number of prompts.
            parameters: None: those of the sources; steps and size must agree with them.
            inputs: per source and prompt, what else the editor uses; None: nothing.

        Returns:
            the edits, in the order of the prompts.

        Raises:
            NotApplicableError: an edit lacks what the editor needs.
            ParameterError, PromptError, RowsOutOfMemoryError.
        """
        parameters = parameters or sources.parameters
        require_agreement(sources.parameters, parameters)
        self._require_family(parameters)
        require_one_each("lists of target prompts", target_prompts, "sources", sources)
        if any(isinstance(prompts, str) for prompts in target_prompts):
            raise ParameterError("target_prompts must hold a list of prompts per source, got text")
        asked = [AskedEdit(s, p) for s, prompts in enumerate(target_prompts) for p in prompts]
        given = inputs_of(inputs, target_prompts)
        if parameters.inside is not None:
            given = bound_inputs(given, asked, sources, parameters.inside)
        targets = [edit.target_prompt for edit in asked]
        regions = region_prompts_of(parameters, sources, asked, given)
        own = (*parameters.method.rule.own_prompts, *texts_of(regions))
        text = self._encode_prompts(prompts_of(sources, asked, (parameters.negative_prompt, *own)))
        unet_limit, vae_limit = self._row_limits(parameters)
        rows_before = unet_limit.evaluated
        latents, source_latents, masks = self._sample(sources, asked, given, parameters, text)
        images, finite = self.autoencoder.decode(latents, vae_limit)
        if isinstance(sources, SyntheticSources):
            source_images, _ = self.autoencoder.decode(source_latents, vae_limit)
        else:
            source_images = sources.images
        if parameters.inside is not None:
            images = bound_images(images, given, asked, source_images, parameters.inside)
        cut = [text.truncated.get(target, "") for target in targets]
        if regions:
            cut = [cut_off(self.checkpoint.tokenizer, each) for each in regions]
        made = zip(targets, images, latents.cpu().unbind(), finite, cut, masks, strict=True)
        edits = iter(Edit(*each) for each in made)
        return EditResult(
            edits=tuple(tuple(next(edits) for _ in prompts) for prompts in target_prompts),
            source_images=source_images,
            unet_rows=unet_limit.evaluated - rows_before,
        )

    def _sample(
        self,
        sources: Sources,
        asked: Sequence[AskedEdit],
        inputs: Sequence[EditInputs],
        parameters: EditParameters,
        text: EncodedPrompts,
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """(latents of the edits, latents of the sources, masks of the edits).

        Edits whose inputs give them other rules, such as some with words to blend, are sampled one
        rule after the other.
        """
        method = parameters.method
        for edit, each in zip(asked, inputs, strict=True):
            source_prompt = sources.source_prompts[edit.source]
            if reason := parameters.not_applicable(source_prompt, edit.target_prompt, each):
                raise NotApplicableError(
                    f"{method.name} cannot make the edit {edit.target_prompt!r} of source "
                    f"{edit.source + 1}: {reason}"
                )
        by_rule: dict[EditRule, list[int]] = {} if asked else {parameters.rule: []}
        for place, each in enumerate(inputs):
            by_rule.setdefault(parameters.rule_for(each), []).append(place)
        sampled = []
        for rule, places in by_rule.items():
            chosen, edits = sources, [asked[place] for place in places]
            if len(by_rule) > 1 and isinstance(sources, Inversion):
                # The rows of a source cost nothing where it has no edit of this rule.
                there = sorted({edit.source for edit in edits})
                chosen = sources.select(there)
                edits = [edit._replace(source=there.index(edit.source)) for edit in edits]
            sampled.append(
                self._sample_alike(
                    rule,
                    chosen,
                    edits,
                    [inputs[place] for place in places],
                    parameters=parameters,
                    text=text,
                )
            )
        latents = torch.cat([each.latents for each in sampled])
        masks = [mask for each in sampled for mask in masks_of(each)]
        if len(sampled) > 1:
            order = torch.tensor([place for places in by_rule.values() for place in places])
            back = order.argsort()
            latents = latents[back.to(latents.device)]
            masks = [masks[place] for place in back.tolist()]
        return latents, sampled[-1].sources, masks

    def _sample_alike(
        self,
        rule: EditRule,
        sources: Sources,
        asked: Sequence[AskedEdit],
        inputs: Sequence[EditInputs],
        *,
        parameters: EditParameters,
        text: EncodedPrompts,
    ) -> Sampled:
        """Samples edits of one rule."""
        schedule = ddim_schedule(self.checkpoint.scheduler_config, parameters.steps)
        limit, _ = self._row_limits(parameters)
        if rule.cross_guidance is not None:
            return sample_cross_guided(
                self._exact_unet,
                schedule,
                rule,
                sources,
                asked,
                inputs=inputs,
                parameters=parameters,
                text=text,
                limit=limit,
            )
        null_text = null_text_of(sources, parameters)
        if null_text is not None:
            text = null_text.prompts_with(text)
        _, height, width = latent_shape(self.checkpoint, parameters)
        layers = self_attention_layers(self.checkpoint.unet, height, width)
        sites = RuleSites(rule, layers, self.unet.parts)
        text, words = self._words(sites, sources, asked, inputs, parameters=parameters, text=text)
        regions = None
        if rule.regions is not None and isinstance(sources, Inversion):
            regions = split_regions(
                self.checkpoint, sources, asked, inputs, parameters=parameters, text=text
            )
            text = regions.text
        denoiser = Denoiser(self.unet, text, limit, self._latent_dtype)
        if null_text is not None:
            null_text.change_by_step(denoiser)
        seen = None
        if rule.image_guidance is not None and isinstance(sources, Inversion):
            seen = sources.trajectory[:, 0] / self.autoencoder.scaling_factor
        return sample_edits(
            denoiser,
            schedule,
            sites,
            sources,
            asked,
            inputs=inputs,
            parameters=parameters,
            words=words,
            seen=seen,
            regions=regions,
        )

    def _words(
        self,
        sites: RuleSites,
        sources: Sources,
        asked: Sequence[AskedEdit],
        inputs: Sequence[EditInputs],
        *,
        parameters: EditParameters,
        text: EncodedPrompts,
    ) -> tuple[EncodedPrompts, EditWords | None]:
        """The prompts with the edits' mixed ones, and where these are; None if none are mixed."""
        if not asked or not any(each.mixes_words for each in sites.rule.injections):
            return text, None
        tokenizer = self.checkpoint.tokenizer
        mixes = [
            parameters.method.token_mix(
                partial(token_ids, tokenizer),
                int(tokenizer.model_max_length),
                sources.source_prompts[edit.source],
                edit.target_prompt,
                each,
            )
            for edit, each in zip(asked, inputs, strict=True)
        ]
        targets = [text.of(edit.target_prompt, sources.sizes[edit.source]) for edit in asked]
        return mix_words(text, mixes, targets, sites.words)

    def _require_family(self, parameters: EditParameters) -> None:
        own = self.checkpoint
        require_family(
            parameters,
            sees_source=own.sees_source,
            is_told_sizes=own.is_told_sizes,
            long_prompts=own.text_settings.long_prompts,
        )

    def _zeros(self, parameters: EditParameters) -> Tensor:
        """An empty batch of latents, (0, C, h, w), on the model's device."""
        shape = (0, *latent_shape(self.checkpoint, parameters))
        return torch.zeros(shape, dtype=self._latent_dtype, device=self.checkpoint.device)

    def _encode_prompts(self, prompts: Sequence[tuple[str, SizeIds | None]]) -> EncodedPrompts:
        return encode_prompts(self.checkpoint.text_encoders, prompts)

    def _row_limits(self, parameters: EditParameters) -> tuple[RowLimit, RowLimit]:
        """The limits of the UNet and of the autoencoder at this size, kept between calls."""
        key = (parameters.width_px, parameters.height_px)
        if key not in self._limits:
            _, height, width = latent_shape(self.checkpoint, parameters)
            unet, vae = self.checkpoint.unet.config, self.checkpoint.vae.config
            maps = (
                unet.block_out_channels[0] * height * width,
                vae.block_out_channels[0] * parameters.width_px * parameters.height_px // 4,
            )
            element_bytes = torch.empty((), dtype=self.checkpoint.dtype).element_size()
            fit = [
                rows_that_fit(self.checkpoint.device, size, element_bytes, self._memory_share)
                for size in maps
            ]
            self._limits[key] = (RowLimit(self._max_rows or fit[0]), RowLimit(min(fit[1], 16)))
        return self._limits[key]
