"""A project of somebody else's: the example of ``docs/chaos.md``, written to a folder and tested there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Builds an image, which these projects do not need.
CONFTEST = "conftest.py"
_FILE = re.compile(r"^```python[^\n]*\n# (?P<path>[\w/]+\.py)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def write_project(folder: Path) -> Path:
    """Write the example project to a folder, and return it."""
    found = [
        each for each in _FILE.finditer((ROOT / "docs" / "chaos.md").read_text()) if each["path"] != CONFTEST
    ]
    assert {each["path"] for each in found} == {
        "bank/app.py",
        "bank/workload.py",
        "test_bank.py",
        "test_trials.py",
    }
    for each in found:
        path = folder / each["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(each["code"])
    (folder / "bank" / "__init__.py").touch()
    return folder


def make_wheel(python: str, folder: Path) -> Path:
    """Build this checkout's wheel in a folder."""
    command = [python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "wheel"), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = (folder / "wheel").iterdir()
    return wheel


def run_pytest(
    python: str, project: Path, *arguments: str, test: str = "test_bank.py", **variables: str
) -> tuple[int, str]:
    """Run pytest on a file of a project with an interpreter; return its status and what it printed."""
    # Nothing of this checkout may help: neither its path nor its pytest options.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", test, *arguments],
        cwd=project,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
