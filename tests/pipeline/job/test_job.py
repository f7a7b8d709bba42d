"""The job model: closed, strict, frozen, described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fpe_core import EditParameters, Embedding, LayersByRange, LayersByTokens, Lora
from fpe_core.checkpoint.add_ons import AddOns
from fpe_core.judging.reconstruction import ReconstructionLimits
from fpe_core.judging.rules import Rules
from fpe_core.speed import SPEED_PRESETS
from pipeline.job.job import Job

MINIMAL: dict[str, Any] = {"manifest": "m.parquet", "output": "out"}


def job(**sections: Any) -> Job:
    return Job.model_validate(MINIMAL | sections)


def rule(score: str, **bounds: float) -> dict[str, Any]:
    return {"score": score, "reason": "no_change", **bounds}


def sections_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections_of(kind)


def test_manifest_and_output_are_all_that_is_needed() -> None:
    assert job().model_dump(mode="json") == {
        "manifest": "m.parquet",
        "output": "out",
        "storage_options": {},
        "editor": "fpe",
        "model": {
            "checkpoint": "builtin:still-life",
            "device": "auto",
            "dtype": "auto",
            "allow_pickle": False,
            "revision": None,
            "config": None,
            "loras": [],
            "embeddings": [],
            "vae": None,
            "clip_skip": 0,
            "long_prompts": "truncate",
            "cache": None,
        },
        "edit": {
            "speed": "exact",
            "steps": None,
            "guidance_scale": None,
            "guidance_interval": None,
            "negative_prompt": None,
            "inversion": "direct",
            "skipped_fraction": None,
            "source_guidance_scale": None,
            "proximal": None,
            "layers": None,
            "replaced_fraction": None,
            "size_px": None,
            "inside": None,
        },
        "prompts": None,
        "images": {
            "fit": "crop",
            "format": "png",
            "quality": 95,
            "max_pixels": 100_000_000,
            "max_bytes": 256_000_000,
            "allowed_sources": None,
            "keep_source": True,
        },
        "judge": None,
        "quotas": None,
        "annotations": None,
        "resources": {
            "ray_address": None,
            "actors": None,
            "max_actors": None,
            "wait_s": 900.0,
            "cpus_per_actor": None,
            "gpus_per_actor": None,
            "threads_per_actor": None,
            "pools": None,
            "groups_per_block": None,
            "edits_per_block": None,
            "max_rows": None,
            "free_cpus": 1,
            "inversions": None,
        },
        "failures": {
            "max_in_a_row": 100,
            "max_share": 0.5,
            "min_sources_for_share": 50,
            "max_stall_s": 1800.0,
            "max_group_s": 7200.0,
        },
        "stop": {"grace_s": 10.0},
        "lease": {"expiry_s": 60.0, "heartbeat_s": 10.0},
        "logs": {"format": "text", "bars": "ray", "level": "info"},
    }
    with pytest.raises(ValidationError, match=r"manifest\n.*required"):
        Job.model_validate({"output": "out"})


def test_a_job_survives_being_written_down() -> None:
    full = job(
        manifest=["a", "b"],
        model={"loras": ["a", {"file": "b", "weight": 2}], "embeddings": ["c"], "vae": "d"},
        edit={"layers": {"first": 4, "last": 14}, "size_px": [256, 512]},
        prompts={"target": "{x}", "labels": {"x": ["1", "2"]}},
    )
    assert Job.model_validate(full.model_dump(mode="json")) == full
    assert Job.model_validate_json(full.model_dump_json()) == full


def test_a_lora_or_embedding_may_be_its_file_alone() -> None:
    model = job(
        model={
            "loras": ["ink.safetensors", {"file": "oil.safetensors", "weight": -0.5}],
            "embeddings": ["cat.safetensors", {"file": "dog.safetensors", "token": "<dog>"}],
            "vae": "vae",
        }
    ).model
    assert model.add_ons == AddOns(
        (Lora("ink.safetensors"), Lora("oil.safetensors", -0.5)),
        (Embedding("cat.safetensors"), Embedding("dog.safetensors", "<dog>")),
        "vae",
    )
    assert not job().model.add_ons


@pytest.mark.parametrize("model", sorted(set(sections_of(Job)), key=lambda m: m.__name__))
def test_every_field_is_described_and_every_section_closed(model: type[BaseModel]) -> None:
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    ("sections", "path", "message"),
    [
        ({"edits": {}}, ("edits",), "Extra inputs"),
        ({"edit": {"step": 3}}, ("edit", "step"), "Extra inputs"),
        ({"edit": {"steps": "50"}}, ("edit", "steps"), "valid integer"),
        ({"edit": {"steps": True}}, ("edit", "steps"), "valid integer"),
        ({"edit": {"steps": 0}}, ("edit", "steps"), "greater than or equal to 1"),
        ({"edit": {"replaced_fraction": 1.5}}, ("edit", "replaced_fraction"), "less than or equal"),
        ({"edit": {"guidance_scale": float("nan")}}, ("edit", "guidance_scale"), "finite"),
        ({"edit": {"guidance_interval": [0.5, 0.2]}}, ("edit",), "must start before it ends"),
        ({"edit": {"guidance_interval": [0, 2]}}, ("edit", "guidance_interval", 1), "less than"),
        ({"edit": {"guidance_interval": [0.5]}}, ("edit", "guidance_interval", 1), "required"),
        ({"edit": {"speed": "warp"}}, ("edit", "speed"), "'exact', 'balanced' or 'fast'"),
        ({"edit": {"layers": {"first": 5, "last": 4}}}, ("edit", "layers"), "must be >= first"),
        ({"edit": {"size_px": 100}}, ("edit", "size_px"), "multiple of 8"),
        ({"edit": {"size_px": [64]}}, ("edit", "size_px"), "required"),
        ({"images": {"format": "gif"}}, ("images", "format"), "'png', 'jpeg' or 'webp'"),
        ({"images": {"max_pixels": 0}}, ("images", "max_pixels"), "greater than"),
        ({"model": {"allow_pickle": "yes"}}, ("model", "allow_pickle"), "boolean"),
        ({"model": {"loras": "a"}}, ("model", "loras"), "valid tuple"),
        ({"model": {"loras": [{}]}}, ("model", "loras", 0, "file"), "required"),
        ({"model": {"loras": [""]}}, ("model", "loras", 0, "file"), "at least 1"),
        ({"model": {"loras": [3]}}, ("model", "loras", 0), "valid dictionary or instance"),
        ({"model": {"loras": [{"file": "a", "weight": "1"}]}}, ("model", "loras", 0), "valid num"),
        (
            {"model": {"loras": [{"file": "a", "weight": float("nan")}]}},
            ("model", "loras", 0, "weight"),
            "finite",
        ),
        ({"model": {"loras": ["https://x/a?sig=1"]}}, ("model", "loras", 0, "file"), "a query"),
        ({"model": {"embeddings": [{"file": "a", "token": "a b"}]}}, ("model",), "not one word"),
        ({"model": {"embeddings": ["s3://me:secret@x/a"]}}, ("model", "embeddings"), "password"),
        ({"model": {"clip_skip": -1}}, ("model", "clip_skip"), "greater than or equal to 0"),
        ({"model": {"long_prompts": "cut"}}, ("model", "long_prompts"), "'truncate' or 'windows'"),
        ({"model": {"vae": ""}}, ("model", "vae"), "at least 1"),
        ({"model": {"vae": "https://x/a?sig=1"}}, ("model", "vae"), "a query"),
        ({"model": {"dtype": "int8"}}, ("model", "dtype"), "'float32'"),
        ({"failures": {"max_share": 2.0}}, ("failures", "max_share"), "less than"),
        ({"manifest": []}, ("manifest",), "names no file"),
        ({"manifest": ["a", " "]}, ("manifest",), "names no file"),
        ({"output": ""}, ("output",), "at least 1"),
        ({"prompts": {"target": " "}}, ("prompts",), "empty"),
        ({"prompts": {"target": "{a.b}"}}, ("prompts",), "does not name a label"),
        ({"prompts": {"target": "x", "source": "{"}}, ("prompts",), "template"),
        ({"prompts": {"target": "{x}", "labels": {"x": []}}}, ("prompts",), "no values"),
        ({"prompts": {"target": "{x}", "labels": {"x": [" "]}}}, ("prompts",), "empty value"),
        ({"prompts": {"target": "{x}", "labels": {"x": [1]}}}, ("prompts",), "valid string"),
        (
            {"prompts": {"target": "x", "labels": {"a b": ["1"]}}},
            ("prompts",),
            "is not a valid name",
        ),
        (
            {"prompts": {"target": "{x}", "labels": {"x": ["1", "1"]}}},
            ("prompts",),
            "appears twice",
        ),
        ({"prompts": {"target": "x", "labels": {"x": ["1", "2"]}}}, ("prompts",), "add {x} to"),
        (
            {
                "prompts": {
                    "target": "{x}{y}",
                    "labels": {"x": ["1"], "y": ["1", "2"]},
                    "combine": "zip",
                }
            },
            ("prompts",),
            "lists of one length",
        ),
        (
            {
                "prompts": {
                    "target": "{x}{y}",
                    "labels": {label: [*map(str, range(101))] for label in "xy"},
                }
            },
            ("prompts",),
            "more than 10000",
        ),
    ],
)
def test_what_is_wrong_is_refused_where_it_is(
    sections: dict[str, Any], path: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        job(**sections)
    found = [error for error in caught.value.errors() if error["loc"][: len(path)] == path]
    assert any(message in error["msg"] for error in found), caught.value


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA", "secret": "x"},
        {"client_kwargs": {"aws_secret_access_key": "x"}},
        {"token": "/home/me/token.json"},
        {"account_key": "x"},
        {"sas_token": "x"},
        {"connection_string": "x"},
        {"secretKey": "x"},
        {"headers": {"Authorization": "Bearer x"}},
        {"client_kwargs": {"aws_session_token": "x"}},
        {"client_kwargs": {"credentials": {"id": "x"}}},
        {"s3": {"client_kwargs": {"AWS_ACCESS_KEY_ID": "x"}}},
        {"accessKeyId": "x"},
        {"secretaccesskey": "x"},
        {"sessiontoken": "x"},
        {"accountkey": "x"},
        {"apiKey": "x"},
        {"passwd": "x"},
        {"pwd": "x"},
        {"client_secret": "x"},
        {"bearerToken": "x"},
        {"ConnectionString": "x"},
        {"s3_additional_kwargs": {"SSECustomerKey": "x"}},
        {"headers": [{"name": "x", "secret": "y"}]},
        {"note": "Bearer x"},
        {"note": "AKIAABCDEFGHIJKLMNOP"},
        {"endpoint_url": "https://me:hunter2@host"},
        {"config_kwargs": {"proxies": {"https": "http://me:hunter2@proxy:3128"}}},
        {"endpoint": "https://account.blob.core.windows.net/?sv=1&sig=hunter2"},
        {"note": "DefaultEndpointsProtocol=https;AccountKey=hunter2"},
    ],
    ids=str,
)
def test_credentials_have_no_place_in_a_job(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"looks like a credential.*environment") as caught:
        job(storage_options=options)
    assert "hunter2" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("field", ["manifest", "output"])
def test_neither_have_passwords_in_urls(field: str) -> None:
    with pytest.raises(ValidationError, match="holds a password") as caught:
        job(**{field: "sftp://me:hunter2@host/run"})
    assert "hunter2" not in caught.value.errors()[0]["msg"]


def test_options_that_are_no_secrets_pass() -> None:
    options = {
        "endpoint_url": "http://localhost:9000",
        "anon": True,
        "token": "anon",
        "client_kwargs": {"region_name": "eu-west-1"},
        "s3_additional_kwargs": {"SSEKMSKeyId": "alias/data"},
        "config_kwargs": {
            "signature_version": "s3v4",
            "connect_timeout": 5,
            "retries": {"max_attempts": 3, "mode": "standard"},
            "proxies": {"https": "http://proxy:3128"},
            "s3": {"addressing_style": "path"},
        },
        "profile": "work",
        "account_name": "me",
        "use_listings_cache": False,
        "requester_pays": True,
    }
    assert job(storage_options=options).storage_options == options
    assert job(manifest="s3://bucket/a@b:c.parquet").manifest_urls == ("s3://bucket/a@b:c.parquet",)


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().output = "elsewhere"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        job().edit.steps = 3  # type: ignore[misc]


DEFAULTS = EditParameters(
    steps=25, guidance_scale=5.0, layers=LayersByRange(3, 13), width_px=128, height_px=128
)


def test_what_is_left_open_is_as_the_checkpoint_recommends() -> None:
    assert job().resolve_parameters(DEFAULTS) == DEFAULTS
    assert job(edit={"steps": 10}).resolve_parameters(DEFAULTS).steps == 10


def test_what_is_chosen_wins_even_where_it_is_nothing() -> None:
    chosen = job(
        edit={
            "guidance_scale": 0.0,
            "negative_prompt": "",
            "layers": {"max_tokens": 0},
            "replaced_fraction": 0.0,
            "size_px": [64, 128],
        }
    ).resolve_parameters(EditParameters(negative_prompt="blurred"))
    assert chosen == EditParameters(
        guidance_scale=0.0,
        negative_prompt="",
        layers=LayersByTokens(0),
        replaced_fraction=0.0,
        width_px=64,
        height_px=128,
    )
    square = job(edit={"size_px": 256}).resolve_parameters(DEFAULTS)
    assert (square.width_px, square.height_px) == (256, 256)


@pytest.mark.parametrize("speed", list(SPEED_PRESETS))
def test_a_speed_changes_the_recommendation_and_gives_way_to_what_is_set(speed: str) -> None:
    preset = SPEED_PRESETS[speed]  # type: ignore[index]
    for recommended in (DEFAULTS, EditParameters()):
        parameters = job(edit={"speed": speed}).resolve_parameters(recommended)
        assert parameters == preset.applied_to(recommended) != recommended
        assert parameters.steps == round(preset.steps_share * recommended.steps)
    assert job(edit={"speed": "exact"}).resolve_parameters(DEFAULTS) == DEFAULTS
    steps = job(edit={"speed": speed, "steps": 25}).resolve_parameters(DEFAULTS)
    assert (steps.steps, steps.guidance_interval) == (25, preset.guidance_interval)
    guided = job(edit={"speed": speed, "guidance_interval": [0, 1]}).resolve_parameters(DEFAULTS)
    assert guided.guidance_interval == (0.0, 1.0)
    assert guided.steps == preset.applied_to(DEFAULTS).steps


def test_the_resolved_job_needs_no_recommendation() -> None:
    for edit in (
        {},
        {"layers": {"max_tokens": 64}, "size_px": 64},
        {"speed": "fast", "guidance_interval": [0.1, 0.5]},
        {"inversion": "edit_friendly", "skipped_fraction": 0.2},
        {"inversion": "negative_prompt", "proximal": {"norm": "l1"}},
    ):
        original = job(edit=edit)
        parameters = original.resolve_parameters(DEFAULTS)
        resolved = original.with_parameters(parameters)
        optional = {"inside", "proximal", "skipped_fraction", "source_guidance_scale"}
        assert None not in resolved.edit.model_dump(exclude=optional).values()
        assert resolved.resolve_parameters(EditParameters()) == parameters
        assert Job.model_validate(resolved.model_dump(mode="json")) == resolved


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"scores": ["beauty"]}, "no score 'beauty'"),
        ({"clip": None, "scores": ["text_score"]}, "text_score needs a model: set clip"),
        (
            {"structure": None, "rules": {"other": [rule("structure_distance", at_most=0.2)]}},
            "structure_distance needs a model: set structure",
        ),
        (
            {"scores": ["ssim"], "rules": {"other": [rule("psnr_db", at_least=20)]}},
            "a rule looks at psnr_db, which is not among the scores",
        ),
        ({"rules": {"other": [rule("psnr_db")]}}, "needs one of at_least and at_most"),
        ({"rules": {"other": [rule("beauty", at_least=1)]}}, "no score 'beauty'"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused(judge: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        job(judge=judge)


def test_the_gate_on_sources_is_off_unless_a_limit_is_set() -> None:
    off, on = (
        job(judge={}).judge,
        job(judge={"reconstruction": {"autoencoder_psnr_db_at_least": 20}}),
    )
    assert off is not None
    assert on.judge is not None
    assert not off.reconstruction.is_on
    assert on.judge.reconstruction.is_on
    assert on.judge.reconstruction.to_limits() == ReconstructionLimits(20.0)


def test_rules_of_a_job_are_rules() -> None:
    section = job(judge={"rules": {"colour": [rule("psnr_db", at_most=40.0)]}}).judge
    assert section is not None
    assert section.to_rules() == Rules.from_dict({"colour": [rule("psnr_db", at_most=40.0)]})
