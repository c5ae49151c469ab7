"""The CI examples for users are what GitHub Actions and GitLab CI accept, and start the plugin's tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "examples" / "ci"
SCHEMAS = {"github-actions.yml": "vendor.github-workflows", "gitlab-ci.yml": "vendor.gitlab-ci"}


def check(schema: str, file: Path) -> int:
    """Check a file against a schema that check-jsonschema brings along; return its status."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    if "gitlab" in schema:
        command += ["--data-transform", "gitlab-ci"]
    return subprocess.run([*command, str(file)], capture_output=True, check=False).returncode


def test_every_example_has_a_schema() -> None:
    """None is left unchecked."""
    assert {path.name for path in CI.iterdir()} == SCHEMAS.keys()


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_example_fits_its_schema(name: str, tmp_path: Path) -> None:
    """It is accepted, and with a misspelt key it would not be."""
    assert check(SCHEMAS[name], CI / name) == 0
    broken = tmp_path / name
    broken.write_text((CI / name).read_text().replace("timeout", "timeuot"))
    assert check(SCHEMAS[name], broken) != 0


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_example_uses_the_plugin(name: str) -> None:
    """It installs the extra and passes a seed."""
    text = (CI / name).read_text()
    assert "unlost[chaos]" in text
    assert "--chaos-seed=" in text
