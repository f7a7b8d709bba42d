"""The blocks of docs/python.md run one after the other and print what their comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


def test_every_print_says_what_it_prints() -> None:
    assert len(BLOCKS) > 5
    code = "\n".join(BLOCKS)
    assert len(PRINTED.findall(code)) == code.count("print(") > 10


@pytest.mark.usefixtures("ray_cluster")
def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)  # the page is ours
        printed = list(dict.fromkeys(capsys.readouterr().out.splitlines()))  # loops repeat lines
        # A method prints when a later line of its block calls it, so only the set is compared.
        assert sorted(printed) == sorted(PRINTED.findall(block)), block
