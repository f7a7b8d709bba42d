"""The settings that a run sends to its workers: how to read, edit, judge and write."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.cluster.pool import Pool
from pipeline.edit.settings import EditSettings
from pipeline.job.job import Job
from pipeline.job.judge import JudgeSection
from pipeline.judge.judge import JudgeSettings
from pipeline.ledger.lease import Lease
from pipeline.plan.plan import Plan
from pipeline.read.decode import DecodeSettings
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.folder import absolute_url
from pipeline.storage.model_store import ModelStore
from pipeline.write.image_format import ImageFormat
from pipeline.write.metadata import MetadataLayout


def decode_settings(job: Job) -> DecodeSettings:
    """The settings for reading and decoding a job's sources."""
    return DecodeSettings(
        fit=job.images.fit,
        max_pixels=job.images.max_pixels,
        max_bytes=job.images.max_bytes,
        rules=SourceRules(job.images.allowed_sources),
        storage_options=job.storage_options,
    )


def edit_settings(
    job: Job, plan: Plan, pool: Pool, layout: MetadataLayout, lease: Lease
) -> EditSettings:
    """The settings for making, judging and writing edits in the run that holds `lease`."""
    model, kept = job.model, job.resources.inversions
    return EditSettings(
        output=absolute_url(job.output),
        storage_options=job.storage_options,
        checkpoint=model.checkpoint,
        checkpoint_fingerprint=plan.fingerprint,
        device=model.device if pool.gpus_per_actor or model.device != "auto" else "cpu",
        dtype=model.dtype,
        allow_pickle=model.allow_pickle,
        revision=model.revision,
        config=model.config,
        add_ons=model.add_ons,
        text_settings=model.text_settings,
        max_rows=job.resources.max_rows,
        memory_share=pool.memory_share,
        threads=pool.threads_per_actor,
        encoders=pool.encoders_per_actor,
        image_format=ImageFormat(job.images.format, job.images.quality),
        layout=layout,
        lease=lease,
        judge=None
        if job.judge is None
        else judge_settings(job.judge, plan.judge_fingerprints, store=job.model_store),
        annotations=plan.annotations,
        makes_edits=plan.makes_edits,
        store=job.model_store,
        inversions=None if kept is None else absolute_url(kept),
    )


def judge_settings(
    judge: JudgeSection,
    fingerprints: Mapping[str, str] | None = None,
    *,
    store: ModelStore | None = None,
) -> JudgeSettings:
    """The settings for judging edits.

    `fingerprints`: those that the models must have, as planned; None: they are not checked.
    `store`: where models are found that lie in an object store.
    """
    return JudgeSettings(
        clip=judge.clip,
        clip_revision=judge.clip_revision,
        structure=judge.structure,
        structure_revision=judge.structure_revision,
        lpips=judge.lpips,
        lpips_revision=judge.lpips_revision,
        lpips_net=judge.lpips_net,
        fingerprints=fingerprints or {},
        scores=judge.scores,
        device=judge.device,
        rules=judge.to_rules(),
        edit_type=judge.edit_type,
        keep_rejected=judge.rejected == "keep",
        ladder=None if judge.retries is None else judge.retries.to_ladder(),
        reconstruction=judge.reconstruction.to_limits(),
        store=store or ModelStore(),
    )
