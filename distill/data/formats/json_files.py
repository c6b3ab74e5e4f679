"""JSON: one object a line, one array of objects, or the objects of pandas and of labelling tools.

The keys are the columns. A dotted name is a path into an object: `data.text`, `annotations.0.label`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.data.formats.base import DataError, Row, Source, open_text
from distill.data.formats.lines import lines_of

Objects = Iterator[tuple[int | str, dict[str, Any]]]  # rows with their places
DEPTH = 100  # levels of a value; deeper ones are read as null
STEPS = 8  # levels whose keys are columns
OBJECTS = 8  # in a list; the values in a longer one are no columns
DIGITS = 4000  # of an integer; Python refuses longer ones
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)  # or the rest, after a quote that is not closed
VISIBLE = re.compile(r"\S")
ADVICE = 'write one object a line, such as {"text": "...", "label": "..."}, or one array of objects'


def read_json(name: str, path: Path, encoding: str | None) -> Source:
    """The objects of a JSON file: one a line, or all in one value, which is then held in memory.

    Raises:
        DataError: The file is not JSON, or has something else than objects.
    """
    objects = _objects(name, path, encoding)
    # the whole file is read for its keys, because the first label of a head may come late
    columns, paths = dict[str, None](), dict[str, None]()
    for _, row in objects():
        columns.update(dict.fromkeys(row))
        for key, value in row.items():
            if isinstance(_choices(value), (dict, list)):
                paths.update(dict.fromkeys(_paths(value, key, STEPS)))

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for place, row in objects():
            cells = (row[c] if c in row else _at(row, c) for c in wanted)
            yield Row(name, place, tuple(_choices(cell) for cell in cells))

    def finds(path: str) -> bool:
        return "." in path and any(_at(row, path) is not None for _, row in objects())

    return Source(name, tuple(columns | paths), read, finds=finds)


def _objects(name: str, path: Path, encoding: str | None) -> Callable[[], Objects]:
    """A function that gives the objects, each time from the file if they are on lines."""
    _, first = next(lines_of(path, encoding), (1, ""))
    try:
        value = parse(first)
        one = not isinstance(value, dict) or (
            _rows(value) != [value] and len([*itertools.islice(lines_of(path, encoding), 2)]) == 1
        )
    except ValueError:
        one = True
    if one:
        with open_text(path, encoding) as file:
            found = [*_whole(name, file.read())]
        return lambda: iter(found)

    def lines() -> Objects:
        for line, content in lines_of(path, encoding):
            try:
                row = parse(content)
                if not isinstance(row, dict):
                    raise ValueError(f"got {type(row).__name__}")
            except ValueError as error:
                raise DataError(f"{name}:{line}: is not a JSON object: {error} ({ADVICE})") from None
            yield line, row

    return lines


def parse(text: str) -> Any:
    """The value of a JSON text. Values nested more than `DEPTH` deep, NaN and infinities are None.

    Raises:
        ValueError: The text is not JSON.
    """
    if text.count("[") + text.count("{") > DEPTH:
        text = _shallow(text)
    return json.loads(text, parse_constant=lambda _: None, parse_int=_integer)


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) < DIGITS else digits


def _shallow(text: str) -> str:
    """The text with null in place of arrays and objects that are nested more than `DEPTH` deep."""
    parts, depth, kept = [], 0, 0
    for token in TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth == DEPTH + 1:
                parts.append(text[kept : token.start()])
        elif token[0] in "]}":
            depth -= 1
            if depth == DEPTH:
                parts.append("null")
                kept = token.end()
    return "".join((*parts, text[kept:])) if depth <= DEPTH else "".join(parts)


def _whole(name: str, text: str) -> Objects:
    """The objects of a file that is one value, or several that are not on lines of their own."""
    try:
        values = [parse(text)]
    except json.JSONDecodeError as error:
        if (found := _sequence(text)) is None:
            what = f"is not a JSON object: {error.msg} ({ADVICE})"
            raise DataError(f"{name}:{error.lineno}: {what}") from None
        values = found
    for number, row in enumerate(_rows(values[0] if len(values) == 1 else values), 1):
        if not isinstance(row, dict):
            raise DataError(f"{name}:row {number}: is not a JSON object: got {type(row).__name__} ({ADVICE})")
        yield f"row {number}", row


def _sequence(text: str) -> list[Any] | None:
    """Values one after another, as `jq` prints them; None if the text is not that."""
    decoder = json.JSONDecoder(parse_constant=lambda _: None, parse_int=_integer)
    values, at = list[Any](), 0
    while rest := VISIBLE.search(text, at):
        try:
            value, at = decoder.raw_decode(text, rest.start())
        except (ValueError, RecursionError):
            return None
        values.append(value)
    return values


def _rows(value: Any) -> list[Any]:
    """The rows of a value: an array, the only array of an object, or what pandas writes of a data frame."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    parts = [*value.values()]
    if isinstance(names := value.get("columns"), list) and isinstance(rows := value.get("data"), list):
        named = [*map(str, names)]
        return [dict(zip(named, row, strict=False)) if isinstance(row, list) else row for row in rows]
    if parts and all(isinstance(part, dict) for part in parts):
        keys = dict.fromkeys(key for part in parts for key in part)
        if len(keys) < len(parts):
            return parts
        if all(len(part) == len(keys) for part in parts):
            return [{column: part[key] for column, part in value.items()} for key in keys]
    arrays = [part for part in parts if isinstance(part, list) and part and isinstance(part[0], dict)]
    return arrays[0] if len(arrays) == 1 and not any(isinstance(part, str) for part in parts) else [value]


def _paths(value: Any, path: str, steps: int) -> Iterator[str]:
    """The dotted names of the values in an object, and in a list of a few objects."""
    if isinstance(value, list) and len(value) <= OBJECTS and all(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _paths(part, f"{path}.{number}", steps)
    value = _choices(value)
    for key, part in value.items() if isinstance(value, dict) else ():
        inner = [*_paths(part, f"{path}.{key}", steps - 1)] if steps > 1 else []
        yield from inner or [f"{path}.{key}"]


def _choices(cell: Any) -> Any:
    """The list in an object that has choices alone, as Label Studio writes several labels."""
    return cell["choices"] if isinstance(cell, dict) and cell.keys() == {"choices"} else cell


def _at(value: Any, path: str) -> Any:
    """The value at a dotted name; None if there is none."""
    while path:
        if isinstance(value, dict):
            step, _, rest = path.partition(".")
            value, path = (value.get(path), "") if path in value else (value.get(step), rest)
        elif isinstance(value, list):
            step, _, path = path.partition(".")
            value = value[int(step)] if step.isdecimal() and int(step) < len(value) else None
        else:
            return None
    return value
