"""The pytest plugin costs nothing where no test uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from unlost import chaos

PRINT_MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def modules_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement."""
    program = f"{statement}; {PRINT_MODULES}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_plugin_loads_only_itself() -> None:
    """Beside pytest's own modules, importing the plugin loads the plugin and nothing of unlost."""
    loaded = modules_after("import pytest, shlex, _unlost_pytestplugin")
    assert loaded - modules_after("import pytest, shlex") == {"_unlost_pytestplugin"}


def test_a_run_without_chaos_loads_nothing_of_unlost(tmp_path: Path) -> None:
    """A whole run of pytest with the plugin active loads no module of unlost but the plugin."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it(request):\n"
        "    assert request.config.pluginmanager.has_plugin('unlost')\n"
        "    found = {name for name in sys.modules if name.split('.')[0] in ('unlost', 'celery', 'docker')}\n"
        "    assert found == set()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_public_name_of_the_kit_can_be_had() -> None:
    """Each name of ``unlost.chaos.__all__`` resolves, and a wrong one says so."""
    assert all(getattr(chaos, name).__name__ == name for name in chaos.__all__)
    assert not hasattr(chaos, "NoSuchThing")


def test_importing_the_kit_loads_no_celery() -> None:
    """The package alone is cheap: its names load on first use."""
    assert not modules_after("import unlost.chaos") & {"celery", "kombu", "psutil"}
