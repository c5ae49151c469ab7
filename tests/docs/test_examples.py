"""Every Python example in README and docs runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def pages() -> Iterator[Path]:
    """Yield every page of prose."""
    yield from (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "tests" / "README.md")
    yield from sorted((ROOT / "docs").rglob("*.md"))


EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in pages()
    for number, code in enumerate(FENCE.findall(page.read_text()))
]


def test_there_are_examples() -> None:
    """The pattern finds the examples, so the tests below are not empty."""
    assert EXAMPLES


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str, tmp_path: Path) -> None:
    """An example runs as it stands, with the example topology beside it."""
    shutil.copytree(ROOT / "topology", tmp_path / "topology")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    targets = [page.parent / target for target in LINK.findall(page.read_text())]
    assert [str(target) for target in targets if not target.exists()] == []
