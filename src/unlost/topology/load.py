"""Read topology files: one YAML file, or every YAML file of a folder, merged into one document.

Files may share the work: each adds queues, and any one of them says the rest. What two files say
differently is an error, never a matter of file order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from unlost.errors import TopologyError

_SUFFIXES = (".yaml", ".yml")
_QUEUES = "queues"


@dataclass(frozen=True, slots=True)
class Document:
    """The merged content of a topology's files.

    Attributes:
        path: The file or folder that was asked for.
        data: Merged content, not validated.
        files: Which file says what, by key: ``("name",)``, ``("queues", "shop.stock")``.
    """

    path: Path
    data: Mapping[str, Any]
    files: Mapping[tuple[str, ...], Path]

    def file_of(self, location: tuple[str, ...]) -> Path:
        """Return the file that says what is at a location, or the whole path if none does."""
        return self.files.get(location[:2]) or self.files.get(location[:1]) or self.path


def read(path: Path) -> Document:
    """Read and merge the YAML of a file or folder.

    Raises:
        TopologyError: A file is missing, unreadable or no mapping, or two files contradict each other.
    """
    data: dict[str, Any] = {}
    files: dict[tuple[str, ...], Path] = {}
    for file in _files_of(path):
        content = _read_file(file)
        if _QUEUES in content:
            data.setdefault(_QUEUES, {})
        for location, value in _entries(file, content):
            if location in files:
                raise _said_twice(location, files[location], file)
            files[location] = file
            _put(data, location, value)
    return Document(path, data, files)


def problems_of(error: ValidationError, document: Document, keys: Mapping[str, tuple[str, ...]]) -> str:
    """Return one line that says for each problem which file, which key, what is wrong and the way out.

    Args:
        error: What pydantic found.
        document: Where the data came from.
        keys: The keys that may be used at the top level (``""``) and within each section.
    """
    return "; ".join(_problem(dict(each), document, keys) for each in error.errors(include_url=False))


def _problem(found: dict[str, Any], document: Document, keys: Mapping[str, tuple[str, ...]]) -> str:
    location = tuple(str(part) for part in found["loc"])
    where = f"{document.file_of(location)}: {': '.join(location)}"
    match found["type"]:
        case "extra_forbidden":
            return f"{where}: no such key{_way_out(location, keys)}"
        case "missing":
            return f"{where}: is missing; add it"
        case _:
            return f"{where}: {found['msg']}, but it is {found['input']!r}"


def _way_out(location: tuple[str, ...], keys: Mapping[str, tuple[str, ...]]) -> str:
    allowed = keys.get(location[0] if len(location) > 1 else "", ())
    close = get_close_matches(location[-1], allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; use one of {', '.join(allowed)}"


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise TopologyError(
            f"{path}: holds no .yaml file; declare the topology in one, for example {path}/app.yaml"
        )
    return files


def _read_file(file: Path) -> dict[Any, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as exc:
        raise TopologyError(f"{file}: cannot be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise TopologyError(f"{file}: is not valid YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(content, dict):
        raise TopologyError(f"{file}: must be a mapping that begins with 'name:' and 'queues:'")
    return content


def _entries(file: Path, content: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what a file says: queues one by one, because several files may add queues."""
    for key, value in content.items():
        if key != _QUEUES:
            yield (str(key),), value
            continue
        if not isinstance(value, dict):
            raise TopologyError(
                f"{file}: queues: must map the name of each queue to its settings ('shop.stock: {{}}')"
            )
        for queue, settings in value.items():
            yield (_QUEUES, str(queue)), settings


def _put(data: dict[str, Any], location: tuple[str, ...], value: object) -> None:
    for part in location[:-1]:
        data = data.setdefault(part, {})
    data[location[-1]] = value


def _said_twice(location: tuple[str, ...], first: Path, second: Path) -> TopologyError:
    return TopologyError(f"{second}: {': '.join(location)}: already declared in {first}; keep one of the two")


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[object] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} occurs twice; keep one of the two", key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep=deep)
