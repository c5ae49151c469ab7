"""Images of a user's project, for workers that run in containers."""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlost.errors import HarnessError
from unlost.testing.brokers.docker import connect_engine, translated_errors

BASE = "python:3.13-slim"

#: Where an image's build finds the authorities that its host trusts, until the packages are installed.
_AUTHORITIES = "unlost-ca.crt"

#: Names them on the host, for pip or for OpenSSL.
_AUTHORITY_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")

_IGNORED = frozenset({".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", "node_modules"})

_DOCKERFILE = """\
FROM {base}
COPY . /project
WORKDIR /project
RUN {variables}python -m pip install --no-cache-dir --disable-pip-version-check {requirements}
ENV PYTHONPATH=/project PYTHONUNBUFFERED=1
"""


def build_image(
    project: Path,
    *,
    tag: str,
    environ: Mapping[str, str],
    requirements: Sequence[str] = ("unlost[chaos]",),
    wheels: Sequence[Path] = (),
    base: str = BASE,
) -> str:
    """Build an image with a project in it, and return its tag.

    A project with a ``Dockerfile`` is built by that; it must install ``unlost[chaos]``. Any other is copied
    to ``/project``, which is on the Python path. The build uses the host's network, and trusts the
    authorities that the host's pip does; the image does not.

    Args:
        project: Its folder.
        tag: Name of the image.
        environ: Where the engine is, and ``PIP_CERT`` or another variable that names a bundle of authorities.
        requirements: What pip installs, such as ``-r requirements.txt``.
        wheels: Files of this host in which pip looks for those, too.
        base: An image with ``python`` and pip.

    Raises:
        HarnessError: No engine answers, or the build failed; the message has its last lines.
    """
    import docker.errors

    context = _context(project, _authorities(environ), requirements, wheels, base)
    with connect_engine(environ) as engine, translated_errors(f"build {tag}"):
        try:
            engine.images.build(
                fileobj=context, custom_context=True, tag=tag, network_mode="host", rm=True, forcerm=True
            )
        except docker.errors.BuildError as exc:
            said = "".join(str(line.get("stream", line.get("error", ""))) for line in exc.build_log)
            raise HarnessError(f"the image {tag} could not be built: {said[-2000:]}") from exc
    return tag


def _context(
    project: Path, authorities: bytes | None, requirements: Sequence[str], wheels: Sequence[Path], base: str
) -> io.BytesIO:
    """Pack what the engine needs to build."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(project, ".", filter=_unless_ignored)
        for wheel in wheels:
            archive.add(wheel, f"wheels/{wheel.name}")
        if authorities is not None:
            _add(archive, _AUTHORITIES, authorities)
        if not (project / "Dockerfile").exists():
            links = ["--find-links=wheels"] if wheels else []
            text = _DOCKERFILE.format(
                base=base,
                variables="" if authorities is None else f"PIP_CERT=/project/{_AUTHORITIES} ",
                requirements=shlex.join([*links, *requirements]),
            )
            _add(archive, "Dockerfile", text.encode())
    packed.seek(0)
    return packed


def _unless_ignored(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if _IGNORED & set(Path(entry.name).parts) else entry


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


def _authorities(environ: Mapping[str, str]) -> bytes | None:
    for name in _AUTHORITY_VARIABLES:
        path = environ.get(name)
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    return None
