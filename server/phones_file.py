"""The fleet file, `phones.json`: read into `NodeSpec`s with errors that name line and column, and saved atomically.

Knows the file's shape; `phones_entry` knows an entry's, `phones_watch` when to read. Nothing here waits or keeps state.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from server.nodes import NodeSpec
from server.phones_entry import EntryError, entry_of, nearest, spec_of
from server.phones_places import Place, line_and_column, places, repeats
from server.whole_file import write_whole

MAX_FILE_BYTES = 4 * 1024 * 1024  # thousands of entries; more is another file by mistake
NEW_MODE = 0o644
MOST_EDITS = 5  # an editor saves once; whoever writes on and on is a program gone wrong
Signature = tuple[int, int, int]
TOP_FIELDS = ("phones", "$schema")
_LONG_NUMBER = re.compile(r"\d{1000,}")


class FleetFileError(Exception):
    """The file cannot be used as it is. Line and column count from 1; both are None where no place is to blame."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}" if self.line else self.message


@dataclass(frozen=True, slots=True)
class FleetFileState:
    """The nodes of the last good reading, and what was wrong with the last reading, if anything was."""

    path: Path
    specs: tuple[NodeSpec, ...] = ()
    error: str | None = None
    line: int | None = None
    column: int | None = None
    loaded_at: float | None = None  # wall clock of the last good reading


def load(path: Path) -> tuple[NodeSpec, ...]:
    """The nodes of the file; none where there is no file. Raises FleetFileError."""
    return _nodes(_content(path))


def parse(text: str) -> tuple[NodeSpec, ...]:
    """The nodes that a text lists. Raises FleetFileError."""
    if not text.strip():
        raise FleetFileError("is empty; a fleet without phones is []", 1, 1)
    try:
        return _specs(text, *_entries(text, _value(text)))
    except RecursionError as problem:
        raise FleetFileError("is nested far too deeply", 1, 1) from problem


def edit(path: Path, change: Callable[[tuple[NodeSpec, ...]], Iterable[NodeSpec]]) -> None:
    """Read the file, change what it lists and save it; all anew where somebody else wrote it meanwhile.

    Raises FleetFileError, OSError, and what `change` raises.
    """
    for _ in range(MOST_EDITS):
        content = _content(path)
        before = _nodes(content)
        after = tuple(change(before))
        for _, message in _listed_twice(after):
            raise FleetFileError(message)
        if after == before or save(path, after, partial(_is_still, path, content)):
            return
    raise OSError(errno.EBUSY, "others write it all the time")


def save(path: Path, specs: Iterable[NodeSpec], wanted: Callable[[], bool] = lambda: True) -> bool:
    """Write the file whole or not at all, also when the power fails; its mode, owner, link and `$schema` stay.

    `wanted` is asked at the last moment; False: it was not, and nothing is written.
    """
    entries = [entry_of(spec) for spec in specs]
    schema = _schema_of(path)
    value: Any = entries if schema is None else {"$schema": schema, "phones": entries}
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return write_whole(path, text, partial(_dress, path=path), wanted)


def signature_of(path: Path) -> Signature | None:
    """What differs between two contents of a file, without reading it. None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _content(path: Path) -> bytes | None:
    """None where there is no file."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise FleetFileError(f"cannot be read: {problem.strerror or problem}") from problem


def _is_still(path: Path, content: bytes | None) -> bool:
    """Compared whole: clocks of file systems are too coarse to tell two writes of one moment apart."""
    return _content(path) == content


def _nodes(content: bytes | None) -> tuple[NodeSpec, ...]:
    if content is None:
        return ()
    if len(content) > MAX_FILE_BYTES:
        raise FleetFileError(f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        before = content[: problem.start].decode("utf-8-sig", "replace")
        raise FleetFileError("is not UTF-8 text", *line_and_column(before, len(before))) from problem
    return parse(text)


def _value(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as problem:
        raise _syntax_error(text, problem) from problem
    except _NoNumber as problem:
        place = line_and_column(text, max(0, text.find(str(problem))))
        raise FleetFileError(f"{problem} is no number of JSON", *place) from problem
    except ValueError as problem:  # Python reads no number of thousands of digits
        found = _LONG_NUMBER.search(text)
        place = line_and_column(text, found.start() if found else 0)
        raise FleetFileError("holds a number with far too many digits", *place) from problem
    for offset, key in repeats(text):
        raise FleetFileError(f"the field {key!r} stands twice in one object", *line_and_column(text, offset))
    return value


def _entries(text: str, value: Any) -> tuple[list[Any], Place]:
    """The list of entries and its place."""
    if isinstance(value, list):
        return value, ()
    if not isinstance(value, dict):
        raise _error(text, (), 'must be a list of phones, or {"phones": [...]}')
    for key in value:
        if key not in TOP_FIELDS:
            raise _error(text, (key,), f"unknown field {key!r}: {nearest(key, TOP_FIELDS)}")
    if not isinstance(value.get("phones"), list):
        place: Place = ("phones",) if "phones" in value else ()
        raise _error(text, place, "'phones' must be a list")
    return value["phones"], ("phones",)


def _specs(text: str, entries: list[Any], base: Place) -> tuple[NodeSpec, ...]:
    specs: list[NodeSpec] = []
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        try:
            spec = spec_of(entry)
        except EntryError as problem:
            at: Place = (*base, index) if problem.field is None else (*base, index, problem.field)
            raise _error(text, at, problem.message) from problem
        if spec.id in seen:
            message = f"entry {index + 1} is the same node as entry {seen[spec.id] + 1} ({spec.id}); give one an 'id'"
            raise _error(text, (*base, index), message)
        seen[spec.id] = index
        specs.append(spec)
    for index, message in _listed_twice(specs):
        raise _error(text, (*base, index, "serial"), message)
    return tuple(specs)


def _listed_twice(specs: Iterable[NodeSpec]) -> Iterator[tuple[int, str]]:
    """Entries of one serial: each would have the phone's one forward, and the phone twice the work."""
    seen: dict[str, int] = {}
    for index, spec in enumerate(specs):
        if spec.serial is None or not spec.enabled:
            continue
        if spec.serial in seen:
            same = f"entry {index + 1} is the phone of entry {seen[spec.serial] + 1} (serial {spec.serial})"
            yield index, f"{same}: list it once, or set 'enabled' to false in one"
        seen[spec.serial] = index


def _error(text: str, place: Place, message: str) -> FleetFileError:
    found = places(text)
    return FleetFileError(message, *line_and_column(text, found.get(place, found[()])))


class _NoNumber(Exception):
    """NaN and its like: Python reads them, JSON does not know them."""


def _no_constant(name: str) -> Any:
    raise _NoNumber(name)


def _syntax_error(text: str, problem: json.JSONDecodeError) -> FleetFileError:
    """The parser's words, or better ones for the two mistakes that everybody makes."""
    before, rest = text[: problem.pos].rstrip(), text[problem.pos :].lstrip()
    if rest.startswith(("//", "#", "/*")):
        return FleetFileError("JSON has no comments", problem.lineno, problem.colno)
    if before.endswith(",") and rest.startswith(("]", "}")):  # newer parsers name the comma itself
        return FleetFileError("JSON has no comma after the last item", *line_and_column(text, len(before) - 1))
    if rest.startswith(",") and rest[1:].lstrip().startswith(("]", "}")):
        return FleetFileError("JSON has no comma after the last item", problem.lineno, problem.colno)
    return FleetFileError(f"no JSON: {problem.msg}", problem.lineno, problem.colno)


def _schema_of(path: Path) -> str | None:
    """The `$schema` that the file names now, which tells an editor how to complete it."""
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    schema = value.get("$schema") if isinstance(value, dict) else None
    return schema if isinstance(schema, str) else None


def _dress(descriptor: int, path: Path) -> None:
    """Mode and owner of the file that is replaced: its owner goes on editing it where the gateway is another user."""
    try:
        found = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, NEW_MODE)
        return
    with contextlib.suppress(PermissionError):  # only root may give a file away
        os.fchown(descriptor, found.st_uid, found.st_gid)
    os.fchmod(descriptor, found.st_mode & 0o7777)
