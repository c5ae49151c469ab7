"""Read topology files: one YAML file, or every YAML file of a folder, merged into one document.

Files may share the work: each adds queues and objects, and any one of them says the rest. What two files
say differently is an error, never a matter of file order. Every error names file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from unlost.errors import TopologyError

_SUFFIXES = (".yaml", ".yml")
# Sections whose entries may be spread over several files, name by name.
_SHARED = frozenset(
    {
        ("queues",),
        ("objects",),
        *(
            ("objects", kind)
            for kind in (
                "exchanges",
                "queues",
                "policies",
                "operator_policies",
                "users",
                "permissions",
                "topic_permissions",
                "parameters",
            )
        ),
    }
)
_BINDINGS = ("objects", "bindings")

Location = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file something is said; lines begin at 1."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Document:
    """The merged content of a topology's files.

    Where something is said is no part of what is said: any two documents are equal.

    Attributes:
        path: The file or folder that was asked for.
        data: Merged content, not validated.
        places: Where each key is said: ``("name",)``, ``("queues", "shop.stock")``, and so on.
    """

    path: Path = field(default=Path(), compare=False)
    data: Mapping[str, Any] = field(default_factory=dict, compare=False)
    places: Mapping[Location, Place] = field(default_factory=dict, compare=False)

    def place_of(self, location: Location) -> Place | None:
        """Return where a location is said, or the closest that is around it; ``None`` if nothing is."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location)

    def where(self, location: Location) -> str:
        """Return ``file:line`` of a location, or the whole path."""
        return str(self.place_of(location) or self.path)


def read(path: Path) -> Document:
    """Read and merge the YAML of a file or folder.

    Raises:
        TopologyError: A file is missing, unreadable or no mapping, or two files contradict each other.
    """
    data: dict[str, Any] = {}
    places: dict[Location, Place] = {}
    for file in _files_of(path):
        content, lines = _read_file(file)
        _merge(data, places, content, {at: Place(file, line) for at, line in lines.items()}, ())
    return Document(path, data, places)


def problems_of(error: ValidationError, document: Document, keys: Mapping[Location, tuple[str, ...]]) -> str:
    """Return one line that says for each problem which file and line, which key, and the way out.

    Args:
        error: What pydantic found.
        document: Where the data came from.
        keys: The keys that may be used at each place; ``*`` stands for any name.
    """
    return "; ".join(_problem(dict(each), document, keys) for each in error.errors(include_url=False))


def _problem(found: dict[str, Any], document: Document, keys: Mapping[Location, tuple[str, ...]]) -> str:
    full = tuple(str(part) for part in found["loc"])
    location = _without_tags(full, document.data)
    where = f"{document.where(location)}: {': '.join(location)}"
    match found["type"]:
        case "extra_forbidden":
            return f"{where}: no such key{_way_out(full, keys)}"
        case "missing":
            return f"{where}: is missing; add it"
        case "union_tag_invalid":
            return f"{where}: type: must be one of {found['ctx']['expected_tags']}"
        case "value_error" | "assertion_error":
            return f"{where}: {found['msg']}"
        case _ if isinstance(found["input"], dict | list):
            return f"{where}: {found['msg']}"
        case _:
            return f"{where}: {found['msg']}, but it is {found['input']!r}"


def _without_tags(location: Location, data: object) -> Location:
    """Leave out the parts that name no key but a member of a union, as pydantic puts them in."""
    out: list[str] = []
    for index, part in enumerate(location):
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        elif index < len(location) - 1:
            continue
        out.append(part)
    return tuple(out)


def _way_out(location: Location, keys: Mapping[Location, tuple[str, ...]]) -> str:
    allowed = next((keys[each] for each in keys if _covers(each, location[:-1])), ())
    close = get_close_matches(location[-1], allowed, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; use one of {', '.join(allowed)}" if allowed else "; remove it"


def _covers(pattern: Location, location: Location) -> bool:
    return len(pattern) == len(location) and all(
        part in ("*", here) for part, here in zip(pattern, location, strict=True)
    )


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise TopologyError(
            f"{path}: holds no .yaml file; declare the topology in one, for example {path}/app.yaml"
        )
    return files


def _read_file(file: Path) -> tuple[dict[Any, Any], dict[Location, int]]:
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        content = loader.construct_document(root) if root is not None else None
    except (OSError, UnicodeDecodeError) as exc:
        raise TopologyError(f"{file}: cannot be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise TopologyError(
            f"{_line_of(file, exc)}: is not valid YAML: {' '.join(str(exc).split())}"
        ) from exc
    if root is None or not isinstance(content, dict):
        raise TopologyError(f"{file}: must be a mapping that begins with 'name:' and 'queues:'")
    return content, dict(_lines(root, ()))


def _line_of(file: Path, exc: yaml.YAMLError) -> str:
    mark = getattr(exc, "problem_mark", None)
    return f"{file}:{mark.line + 1}" if mark is not None else str(file)


def _lines(node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    """Yield the line of every key and list item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            at = (*location, str(key.value))
            yield at, key.start_mark.line + 1
            yield from _lines(value, at)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            at = (*location, str(index))
            yield at, item.start_mark.line + 1
            yield from _lines(item, at)


def _merge(
    data: dict[str, Any],
    places: dict[Location, Place],
    content: Mapping[Any, Any],
    said: Mapping[Location, Place],
    location: Location,
) -> None:
    """Add what a file says to what others said."""
    for key, value in content.items():
        at = (*location, str(key))
        if at in _SHARED and (isinstance(value, dict) or value is None):
            _keep(places, {at: said[at]})
            _merge(data.setdefault(at[-1], {}), places, value or {}, said, at)
        elif at in _SHARED:
            raise TopologyError(
                f"{said[at]}: {': '.join(at)}: must map names to settings ('shop.stock: {{}}')"
            )
        elif at == _BINDINGS and isinstance(value, list):
            _append(data.setdefault(at[-1], []), places, value, said)
        elif at[-1] in data:
            raise _said_twice(at, places[at], said[at])
        else:
            data[at[-1]] = value
            _keep(places, {each: place for each, place in said.items() if each[: len(at)] == at})


def _append(
    items: list[Any], places: dict[Location, Place], added: list[Any], said: Mapping[Location, Place]
) -> None:
    """Add a file's bindings behind those of others, and their lines under the new numbers."""
    before = len(items)
    depth = len(_BINDINGS)
    _keep(places, {_BINDINGS: said[_BINDINGS]})
    for at, place in said.items():
        if at[:depth] == _BINDINGS and len(at) > depth:
            _keep(places, {(*_BINDINGS, str(int(at[depth]) + before), *at[depth + 1 :]): place})
    items.extend(added)


def _keep(places: dict[Location, Place], said: Mapping[Location, Place]) -> None:
    for at, place in said.items():
        places.setdefault(at, place)


def _said_twice(location: Location, first: Place, second: Place) -> TopologyError:
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
