"""Reads `pipeline.yaml`: YAML to a validated `Pipeline`, every fault with its line, all faults of a file at once."""

from __future__ import annotations

import datetime
import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from launchpad.errors import DeclarationError, Problem
from launchpad.spec import Pipeline

FILE = "pipeline.yaml"
SCHEMA_FILE = "pipeline.schema.json"
DEEPEST = 50
"""Levels of nesting beyond which a file can only be one that contains itself."""

MOST_VALUES = 100_000
"""Values beyond which a file can only be one whose aliases multiply each other."""

MENDINGS = 4
"""Passes over a faulty file: what one takes out may leave its parent incomplete, and so on towards the root."""

TOO_LARGE = f"aliases multiply to more than {MOST_VALUES:,} values"

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads `1e-5` as a number, as YAML 1.2 does."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=TOO_LARGE, problem_mark=node.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Declaration:
    """A valid declaration, its text and the file it came from."""

    pipeline: Pipeline
    root: Path
    lines: dict[KeyPath, int]
    text: str
    file: str = FILE

    def where(self, *path: str | int) -> str:
        """Return `pipeline.yaml:LINE` of a key path, or of its nearest parent that the file spells out."""
        return f"{self.file}:{_line(self.lines, path)}"


def load(root: Path, file: str = FILE) -> Declaration:
    """Read and validate the declaration in the folder `root`.

    Raises DeclarationError with one Problem for each fault: file, line, key, what is wrong, what would be right.
    """
    try:
        text = (root / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DeclarationError(
            f"there is no {file} here", str(root), "run `invoke init --source PATH` to write one"
        ) from None
    except UnicodeDecodeError as error:
        raise DeclarationError("is not UTF-8 text", f"{file}:{_line_of_byte(root / file, error.start)}") from None
    except OSError as error:
        raise DeclarationError(f"cannot be read: {error.strerror}", file) from None
    return parse(text, root, file)


def parse(text: str, root: Path, file: str = FILE) -> Declaration:
    """Validate the text of a declaration, as `load` does, that is or will be in the folder `root`."""
    document = _Document(file, text)
    problems = document.problems
    pipeline, faults = _validate(document)
    problems += [_problem(file, document.lines, fault) for fault in faults]
    known = [_declared(document.lines, fault["loc"]) for fault in faults]
    for path, message in pipeline.contradictions() if pipeline else ():
        if not any(path[: len(faulty)] == faulty for faulty in known):
            problems.append(Problem(f"{_dotted(path)}: {message}", f"{file}:{_line(document.lines, path)}"))
    if problems or pipeline is None:
        raise DeclarationError(sorted(problems, key=lambda problem: int(problem.where.rpartition(":")[2])))
    return Declaration(pipeline, root, document.lines, text, file)


def value(name: str, text: str) -> Any:
    """Return the plain value of a YAML text, sequences as tuples; `name` says in a DeclarationError whence it is."""
    document = _Document(name, text)
    if document.problems:
        raise DeclarationError(document.problems)
    return document.value


def schema() -> str:
    """Return the JSON Schema of `pipeline.yaml` (draft 2020-12), as committed in `pipeline.schema.json`."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Pipeline.model_json_schema()}
    return json.dumps(document, indent=1) + "\n"


def _validate(document: _Document) -> tuple[Pipeline | None, list[dict[str, Any]]]:
    """Return the pipeline and pydantic's faults.

    With faults the pipeline is what is left when each faulty value is taken out (None if that is not valid
    either), so that contradictions between the sound parts are found in the same pass.
    """
    value: Any = document.value
    faults: list[dict[str, Any]] = []
    for _ in range(MENDINGS):
        try:
            return Pipeline.model_validate(value), faults
        except ValidationError as error:
            found: list[dict[str, Any]] = [{**fault} for fault in error.errors()]
        faults = faults or found
        for fault in found:
            missing = fault["loc"][-1] if fault["type"] == "missing" else None
            location = fault["loc"][:-1] if missing else fault["loc"]
            value = _mended(value, _declared(document.lines, location), missing)
    return None, faults


def _mended(value: Any, path: KeyPath, missing: str | None) -> Any:
    """Return `value` without what is at `path`; or, where a key is missing there, with something in its place."""
    if not path:
        return value | {missing: FILLER.get(missing, "x")} if missing and isinstance(value, dict) else value
    head, rest = path[0], path[1:]
    keep = bool(rest or missing)
    if isinstance(value, dict) and head in value:
        others = {key: item for key, item in value.items() if key != head}
        return others | {head: _mended(value[head], rest, missing)} if keep else others
    if isinstance(value, tuple) and isinstance(head, int) and head < len(value):
        item = (_mended(value[head], rest, missing),) if keep else ()
        return (*value[:head], *item, *value[head + 1 :])
    return value


FILLER: dict[str, Any] = {
    "max_batch_size": 1,
    "num_batch_threads": 1,
    "users": 1,
    "duration_s": 1,
    "height": 1,
    "width": 1,
    "shape": (1,),
    "models": {"x": {"source": "x"}},
    "profiles": {"x": {"users": 1, "duration_s": 1}},
    "expires": datetime.date.max,
}
"""Values for required keys that are missing, by key; a text for the others."""


class _Document:
    """A YAML text as plain values, with the line of each key path. Sequences become tuples."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[Problem] = []
        self._values = 0
        self._own_keys: dict[int, set[int]] = {}
        try:
            self._loader = loader = _Loader(text)
            node = loader.get_single_node()
            if node is None:
                raise DeclarationError("is empty", f"{file}:1", "run `invoke init --source PATH` to write one")
            self.value = self._plain(node, ())
        except yaml.MarkedYAMLError as error:
            raise DeclarationError(*_syntax(file, error)) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            what = f"is not YAML: it cannot have the character U+{error.character:04X}"
            raise DeclarationError(what, f"{file}:{line}") from None
        except RecursionError:
            raise DeclarationError("is not YAML for this project: it is nested without end", f"{file}:1") from None
        except (yaml.YAMLError, ValueError) as error:
            raise DeclarationError(f"is not YAML: {error}", f"{file}:1") from None

    def _plain(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._values += 1
        if self._values > MOST_VALUES:
            raise DeclarationError(f"{_dotted(path[:1])}: {TOO_LARGE}", f"{self.file}:{self.lines[path[:1]]}")
        if len(path) > DEEPEST:
            raise DeclarationError(
                f"{_dotted(path[:1])}: is nested without end: an alias stands inside what it names",
                f"{self.file}:{line}",
            )
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._plain(item, (*path, index)) for index, item in enumerate(node.value))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(node)
        except (ValueError, LookupError, AttributeError, TypeError):
            return node.value  # such as the date 2026-13-45, or `!!bool x`: left as text, for the types to refuse

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Any, Any]:
        own = self._own_keys.setdefault(id(node), {key_node.start_mark.index for key_node, _ in node.value})
        self._loader.flatten_mapping(node)  # puts what `<<` names before the node's own keys
        values: dict[Any, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                key = str(key_node.value)
            if key_node.start_mark.index in own and key in first:
                message = f"{_dotted((*path, key))}: is given twice, first on line {first[key]}"
                self.problems.append(Problem(message, f"{self.file}:{line}"))
            if key_node.start_mark.index in own:
                first.setdefault(key, line)
            self.lines[*path, key] = line
            values[key] = self._plain(value_node, (*path, key))
        return values


def _syntax(file: str, error: yaml.MarkedYAMLError) -> tuple[str, str, str]:
    mark = error.problem_mark or error.context_mark
    where = f"{file}:{mark.line + 1}" if mark else f"{file}:1"
    if "'\\t'" in str(error.problem):
        return "a tab where YAML wants spaces", where, "indent with spaces"
    return f"is not YAML: {error.problem or error.context}", where, ""


def _problem(file: str, lines: dict[KeyPath, int], fault: dict[str, Any]) -> Problem:
    """Put one of pydantic's faults into the user's words."""
    path = _declared(lines, fault["loc"])
    where = f"{file}:{_line(lines, path)}"
    name, kind = _dotted(path), fault["type"]
    if kind == "extra_forbidden":
        key = fault["loc"][-1]
        parent = path[:-1] if path and path[-1] == key else path  # a step given by its bare name is no key of the file
        known = _keys(parent)
        near = difflib.get_close_matches(str(key), known, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return Problem(f"{_dotted((*parent, key))}: unknown key", where, fix)
    if kind == "missing":
        return Problem(f"{_dotted((*path, fault['loc'][-1]))}: is missing", where)
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", message)
    given = fault["input"]
    shown = "" if kind == "value_error" or isinstance(given, (dict, tuple)) else f", not {given!r}"
    return Problem(f"{name}: {message}{shown}", where)


def _declared(lines: dict[KeyPath, int], location: tuple[str | int, ...]) -> KeyPath:
    """Return the segments of pydantic's location that are keys of the file; it also names types in between."""
    path: KeyPath = ()
    for segment in location:
        if (*path, segment) in lines:
            path = (*path, segment)
    return path


def _line(lines: dict[KeyPath, int], path: KeyPath) -> int:
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _line_of_byte(path: Path, offset: int) -> int:
    return path.read_bytes()[:offset].count(b"\n") + 1


def _dotted(path: KeyPath) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the file"


def _keys(path: KeyPath) -> list[str]:
    """Return the keys that the schema knows at a key path."""
    document = Pipeline.model_json_schema()
    nodes = [document]
    for part in path:
        nodes = [
            child
            for node in _branches(document, nodes)
            for child in (
                node.get("properties", {}).get(part),
                node.get("additionalProperties"),
                *node.get("patternProperties", {}).values(),
                node.get("items") if isinstance(part, int) else None,
            )
            if isinstance(child, dict)
        ]
    return [key for node in _branches(document, nodes) for key in node.get("properties", {})]


def _branches(document: dict[str, Any], nodes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield schema nodes with references followed and alternatives laid side by side."""
    for node in nodes:
        if "$ref" in node:
            yield from _branches(document, [document["$defs"][node["$ref"].rpartition("/")[2]]])
        elif "anyOf" in node or "oneOf" in node:
            yield from _branches(document, node.get("anyOf") or node["oneOf"])
        else:
            yield node
