"""Errors in a job file have the path, the line, what was found and what is allowed."""

from __future__ import annotations

import pathlib

import pytest
import yaml

from jobs.job_file.ready_made import BUILTIN_FOLDER
from pipeline.errors import JobError
from pipeline.job.file import load_job
from pipeline.job.job import Job

MINIMAL = "manifest: in.parquet\noutput: out\n"


def job_of(folder: pathlib.Path, text: str, *overrides: str) -> Job:
    file = folder / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return load_job(file, overrides)


def complaint(folder: pathlib.Path, text: str, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        job_of(folder, text, *overrides)
    return str(caught.value).replace(str(folder) + "/", "")


@pytest.mark.parametrize("file", sorted(BUILTIN_FOLDER.glob("*.yaml")), ids=lambda f: f.stem)
def test_ready_made_jobs_are_jobs(file: pathlib.Path) -> None:
    assert load_job(file).output.startswith("out/")


def test_there_are_the_three_ready_made_jobs() -> None:
    assert {"demo", "augment", "relabel"} <= {f.stem for f in BUILTIN_FOLDER.glob("*.yaml")}


def test_overrides_replace_add_and_make_sections(tmp_path: pathlib.Path) -> None:
    job = job_of(
        tmp_path,
        MINIMAL + "edit: {steps: 10, guidance_scale: 3.0}\n",
        "edit.steps=20",
        "edit.layers={first: 3, last: 13}",
        "images.format=jpeg",
        "prompts.target=a {colour} hat",
        "prompts.labels.colour=[red, 'off']",
        "manifest=[a.parquet, b.parquet]",
        "edit.steps=30",
    )
    assert job.edit.steps == 30, "the last of two overrides counts"
    assert job.edit.guidance_scale == 3.0
    assert job.edit.layers is not None
    assert job.edit.layers.model_dump() == {"first": 3, "last": 13}
    assert job.images.format == "jpeg"
    assert job.prompts is not None
    assert job.prompts.labels == {"colour": ["red", "off"]}
    assert job.manifest_urls == ("a.parquet", "b.parquet")


def test_an_override_may_hold_equals_signs(tmp_path: pathlib.Path) -> None:
    assert job_of(tmp_path, MINIMAL, "edit.negative_prompt=a=b").edit.negative_prompt == "a=b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "edit: {steps: 0}",
            "job.yaml:3: edit.steps: must be >= 1 (got 0)",
        ),
        (
            "edit:\n  steps: 20\n  stepz: 3",
            "job.yaml:5: edit.stepz: unknown key; did you mean 'steps'? Allowed here: speed, "
            "steps, guidance_scale, guidance_interval, negative_prompt, inversion, "
            "skipped_fraction, source_guidance_scale, proximal, layers, replaced_fraction, "
            "size_px, inside",
        ),
        (
            "xyzzy: 1",
            "job.yaml:3: xyzzy: unknown key; Allowed here: manifest, output, storage_options, "
            "editor, model, edit, prompts, images, judge, quotas, annotations, resources, "
            "failures, stop, lease, logs",
        ),
        (
            "edit: {layers: {max_token: 5}}",
            "job.yaml:3: edit.layers.max_token: unknown key; did you mean 'max_tokens'? "
            "Allowed here: level, max_tokens, first, last, part",
        ),
        (
            "edit: {layers: {first: 4}}",
            "job.yaml:3: edit.layers.last: is required",
        ),
        (
            "edit: {layers: 4}",
            "job.yaml:3: edit.layers: must be a mapping (got the number 4)",
        ),
        (
            "edit: {size_px: big}",
            "job.yaml:3: edit.size_px: must be a whole number or a list (got the text 'big')",
        ),
        (
            "edit: {size_px: [64, 12]}",
            "job.yaml:3: edit.size_px[1]: must be a multiple of 8 (got the number 12)",
        ),
        (
            "edit: {guidance_scale: 1e1}",
            "job.yaml:3: edit.guidance_scale: must be a number (got the text '1e1'); "
            "write it without quotes, and 1e-3 as 1.0e-3",
        ),
        (
            "judge:\n  rules:\n    colour: [{scor: 1}]",
            "job.yaml:5: judge.rules.colour[0].scor: unknown key; did you mean 'score'? "
            "Allowed here: score, at_least, at_most, reason",
        ),
        (
            "images: {fit: stretch}",
            "job.yaml:3: images.fit: must be 'crop' or 'pad' (got the text 'stretch')",
        ),
        (
            "prompts:\n  target: a {w} hat\n  labels:\n    w: [on, 'off']",
            "job.yaml:6: prompts.labels.w[0]: must be text (got the switch true); "
            "YAML reads yes, no, on and off as switches: put quotes around the word",
        ),
        (
            "model:\n  loras: [{file: ink, wieght: 0.5}]",
            "job.yaml:4: model.loras[0].wieght: unknown key; did you mean 'weight'? Allowed here: "
            "file, weight, text_encoder_weight",
        ),
        (
            "model: {loras: ink}",
            "job.yaml:3: model.loras: must be a list (got the text 'ink')",
        ),
        (
            "model: fast",
            "job.yaml:3: model: must be a mapping (got the text 'fast')",
        ),
    ],
)
def test_what_is_wrong_is_said_with_line_and_path(
    tmp_path: pathlib.Path, text: str, expected: str
) -> None:
    assert expected in complaint(tmp_path, MINIMAL + text + "\n").splitlines()


def test_all_problems_are_listed_at_once(tmp_path: pathlib.Path) -> None:
    text = complaint(tmp_path, "output: 3\nedit: {steps: x}\nimagse: {}\n")
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "manifest",
        "output",
        "edit.steps",
        "imagse",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("edit.steps=0", "override 'edit.steps=0': edit.steps: must be >= 1 (got 0)"),
        ("edti.steps=3", "override 'edti.steps=3': edti: unknown key; did you mean 'edit'?"),
        ("edit.stepz=3", "override 'edit.stepz=3': edit.stepz: unknown key; did you mean 'steps'?"),
        ("steps", "override 'steps': expected dotted.key=value, such as edit.steps=20"),
        ("=3", "override '=3': expected dotted.key=value"),
        ("edit..steps=3", "override 'edit..steps=3': expected dotted.key=value"),
        ("output.folder=x", "override 'output.folder=x': output is the text 'out', so nothing"),
        ("edit.layers=[1", "override 'edit.layers=[1':1: not YAML, column 3"),
        ("edit={steps: 0}", "override 'edit={steps: 0}': edit.steps: must be >= 1 (got 0)"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: pathlib.Path, override: str, expected: str) -> None:
    assert complaint(tmp_path, MINIMAL, override).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "job.yaml: manifest: is required\njob.yaml: output: is required"),
        (
            "- a\n- b\n",
            "job.yaml: a job file is a mapping of keys to values, this one holds a list",
        ),
        ("manifest: [a\noutput: b\n", "job.yaml:2: not YAML, column 7"),
        ("manifest: a\nmanifest: b\n", "job.yaml:2: manifest: this key is written twice"),
        ("edit:\n  steps: 1\n  steps: 2\n", "job.yaml:3: edit.steps: this key is written twice"),
        ("manifest: &a [*a]\n", "job.yaml:1: manifest[0]: an alias (*) refers to what contains it"),
        ("manifest: !!python/object:os.system x\n", "job.yaml:1: not YAML, column 11"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(
    tmp_path: pathlib.Path, text: str, expected: str
) -> None:
    assert complaint(tmp_path, text).startswith(expected)


def test_a_missing_file_names_its_neighbours(tmp_path: pathlib.Path) -> None:
    (tmp_path / "night.yaml").write_text(MINIMAL, encoding="utf-8")
    with pytest.raises(JobError, match=r"nigth\.yaml: there is no such job file; .*night\.yaml"):
        load_job(tmp_path / "nigth.yaml")


def test_a_folder_and_a_binary_file_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(JobError, match="this is a folder"):
        load_job(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(JobError, match="not UTF-8 text"):
        load_job(tmp_path / "picture.png")


def test_overrides_leave_the_files_own_values_alone(tmp_path: pathlib.Path) -> None:
    text = MINIMAL + "prompts: &p {target: 'a {c}', labels: {c: [x, y]}}\n"
    changed = job_of(tmp_path, text, "prompts.labels.c=[z, w]")
    plain = job_of(tmp_path, text)
    assert changed.prompts is not None
    assert plain.prompts is not None
    assert changed.prompts.labels == {"c": ["z", "w"]}
    assert plain.prompts.labels == {"c": ["x", "y"]}


@pytest.mark.parametrize("value", ["2026-99-99", "0x_", "[" * 3000])
def test_values_that_yaml_itself_chokes_on(tmp_path: pathlib.Path, value: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"manifest: m.parquet\noutput: out\nedit:\n  steps: {value}\n")
    with pytest.raises(JobError, match=r"job\.yaml"):
        load_job(file)
    file.write_text("manifest: m.parquet\noutput: out\n")
    with pytest.raises(JobError):
        load_job(file, [f"edit.steps={value}"])


@pytest.mark.parametrize("value", [{"type": "authorized_user"}, ["a"]])
def test_credentials_of_any_kind_are_refused(tmp_path: pathlib.Path, value: object) -> None:
    file = tmp_path / "job.yaml"
    document = {"manifest": "m", "output": "o", "storage_options": {"token": value}}
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(JobError, match="looks like a credential"):
        load_job(file)


@pytest.mark.parametrize(
    "override",
    [
        "storage_options.client_kwargs.aws_secret_access_key=hunter2",
        "storage_options={secret: hunter2}",
        "storage_options.secret={hunter2",
        "storage_option.secret=hunter2",
        "storage_options.endpoint_url=https://me:hunter2@host",
    ],
)
def test_no_message_holds_a_secret_that_was_typed(tmp_path: pathlib.Path, override: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("manifest: m\noutput: o\n")
    with pytest.raises(JobError, match="storage_option") as caught:
        load_job(file, [override])
    assert "hunter2" not in str(caught.value)
    key, _, value = override.partition("=")
    if "." not in key:
        file.write_text(f"manifest: m\noutput: o\n{key}: {value}\n")
        with pytest.raises(JobError, match="looks like a credential") as caught:
            load_job(file)
        assert "hunter2" not in str(caught.value)


LONE = "\\ud83d"
"""As JSON and YAML write half of a character beyond U+FFFF."""


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f'prompts: {{target: "a {LONE} cat"}}', "job.yaml:3: prompts.target: this text"),
        (
            f'prompts: {{target: "{{c}}", labels: {{c: ["x", "{LONE}"]}}}}',
            "under 'c': item 2: this",
        ),
        (
            f'storage_options: {{client_kwargs: {{region_name: "{LONE}"}}}}',
            "job.yaml:3: storage_op",
        ),
        (f'storage_options: {{"{LONE}": 1}}', "job.yaml:3: the key '\\ud83d'"),
        (f'edit: {{negative_prompt: "{LONE}"}}', "job.yaml:3: edit.negative_prompt: this text"),
        (f'judge: {{rules: "{LONE}.yaml"}}', "job.yaml:3: judge.rules"),
        (f'"{LONE}": 1', "job.yaml:3: the key '\\ud83d'"),
    ],
)
def test_text_without_an_encoding_is_refused_by_its_place(
    tmp_path: pathlib.Path, text: str, place: str
) -> None:
    """Failed before: a UnicodeEncodeError while planning (PyYAML 6.0.3 lets it pass)."""
    found = complaint(tmp_path, MINIMAL + text)
    assert place in found
    assert found.encode()


@pytest.mark.parametrize("override", ["output=\udcff", 'edit.negative_prompt="\\ud83d"'])
def test_an_override_that_is_not_utf8_is_refused(tmp_path: pathlib.Path, override: str) -> None:
    """Python gives a command line's bytes that are not UTF-8 as surrogates (PEP 383)."""
    assert complaint(tmp_path, MINIMAL, override).startswith("override")


def test_a_job_from_python_is_checked_too() -> None:
    with pytest.raises(JobError, match="manifest: item 2: this text cannot be written as UTF-8"):
        load_job({"manifest": ["a", "\ud83d"], "output": "out"})


def test_a_surrogate_pair_is_one_character(tmp_path: pathlib.Path) -> None:
    """json.dumps writes an emoji as two escapes, and JSON is YAML."""
    job = job_of(
        tmp_path, MINIMAL + 'prompts: {target: "\\ud83d\\ude00"}', 'output="\\ud83d\\ude00"'
    )
    assert job.prompts is not None
    assert (job.prompts.target, job.output) == ("\U0001f600", "\U0001f600")


def test_a_control_character_is_refused(tmp_path: pathlib.Path) -> None:
    assert "not YAML: character 37 is '\\x01'" in complaint(tmp_path, MINIMAL + "x: \x01")
