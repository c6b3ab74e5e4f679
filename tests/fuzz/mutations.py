"""Strategies that damage valid files: their bytes, their JSON, the fields of a protobuf message."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.fuzz.values import CONTAINERS, INTEGERS, NUMBERS, PIECES, STRINGS

Draw = Callable[[st.SearchStrategy[Any]], Any]
T = TypeVar("T")


class Raw(str):
    """JSON text that is written as it is."""


class Object(list[tuple[Any, Any]]):
    """A JSON object as its pairs, of which two may have the same key."""


def parsed(text: str | bytes) -> Any:
    """A JSON value whose objects are `Object`."""
    return json.loads(text, object_pairs_hook=Object)


def rendered(value: Any) -> str:
    """The JSON text of a value."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Object):
        return "{" + ", ".join(f"{rendered(k)}: {rendered(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(rendered, value)) + "]"
    return json.dumps(value)


def one_of(draw: Draw, values: Sequence[T]) -> T:
    """One of the values."""
    return values[draw(st.integers(0, len(values) - 1))]


def nasty(draw: Draw, more: Sequence[str] = ()) -> Raw:
    """The JSON text of a value that few programs expect."""
    kind = draw(st.integers(0, 5 if more else 4))
    if kind == 0:
        return Raw(json.dumps(draw(st.text(max_size=20))))
    if kind == 1:
        return Raw(json.dumps(one_of(draw, STRINGS)))
    if kind == 2:
        return Raw(one_of(draw, [*map(str, INTEGERS), *NUMBERS]))
    return Raw(one_of(draw, CONTAINERS if kind < 5 else more))


def change_tree(draw: Draw, tree: Any, more: Sequence[str] = ()) -> Any:
    """A JSON value with one to four changes; `more` are JSON texts that may replace a part."""
    root = [tree]
    for _ in range(one_of(draw, (1, 1, 1, 2, 3))):
        holder, place = _part(draw, root)
        value = holder[place][1] if isinstance(holder, Object) else holder[place]
        what = draw(st.integers(0, 9))
        if what == 0 and holder is not root:
            del holder[place]
        elif what == 1 and holder is not root:
            holder.insert(place, holder[draw(st.integers(0, len(holder) - 1))])
        elif what == 2 and isinstance(holder, Object):
            holder[place] = (draw(st.sampled_from(STRINGS)), value)
        else:
            if what == 3 and isinstance(value, (int, float)):
                value = Raw(
                    one_of(draw, [str(value + 1), str(-value), str(value * 1e6), f"{value}.0", f'"{value}"'])
                )
            elif what == 4 and type(value) is str:
                at = draw(st.integers(0, len(value)))
                value = value[:at] + one_of(draw, STRINGS) + value[draw(st.integers(at, len(value))) :]
            elif what == 5:
                other, at = _part(draw, root)
                value = Raw(rendered(other[at][1] if isinstance(other, Object) else other[at]))
            elif what == 6:
                value = [value] if draw(st.booleans()) else Object([("a", value)])
            else:
                value = nasty(draw, more)
            holder[place] = (holder[place][0], value) if isinstance(holder, Object) else value
    return root[0]


def _part(draw: Draw, root: list[Any]) -> tuple[list[Any], int]:
    """A part of a tree: the list or object that holds it, and its place there."""
    holder: list[Any] = root
    while True:
        place = draw(st.integers(0, len(holder) - 1))
        value = holder[place][1] if isinstance(holder, Object) else holder[place]
        if not (isinstance(value, list) and value) or (holder is not root and draw(st.integers(0, 3)) == 0):
            return holder, place
        holder = value


def change_bytes(draw: Draw, data: bytes, pieces: Sequence[bytes] = PIECES) -> bytes:
    """Bytes with one to four changes: flipped, cut, removed, repeated, replaced by a piece."""
    for _ in range(one_of(draw, (1, 1, 2, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + one_of(draw, (1, 1, 2, 8, 60, 1_000)))
        what = draw(st.integers(0, 6))
        if what == 0 and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << draw(st.integers(0, 7))]) + data[start + 1 :]
        elif what == 1:
            data = data[:start] if draw(st.booleans()) else data[start:]
        elif what == 2:
            data = data[:start] + data[end:]
        elif what == 3:
            data = data[:start] + data[start:end] * one_of(draw, (2, 2, 3, 300)) + data[end:]
        elif what == 4:
            data = data[:start] + draw(st.binary(max_size=8)) + data[end:]
        else:
            data = data[:start] + one_of(draw, pieces) + data[end if what == 5 else start :]
    return data


def flip_bits(draw: Draw, data: bytes) -> bytes:
    """Bytes with one to four bits flipped."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def change_message(draw: Draw, message: Any, words: Sequence[str]) -> None:
    """Change a field of a protobuf message or of a message in it; `words` are values of strings."""
    fields = [f for f in message.DESCRIPTOR.fields if _is_set(message, f)] or [*message.DESCRIPTOR.fields]
    field = one_of(draw, fields if draw(st.integers(0, 7)) else [*message.DESCRIPTOR.fields])
    value = getattr(message, field.name)
    repeated = not isinstance(value, (int, float, str, bytes)) and hasattr(value, "__len__")
    what = draw(st.integers(0, 5))
    if repeated and value and what == 0:
        del value[draw(st.integers(0, len(value) - 1))]
    elif repeated and value and what == 1:
        value.extend([value[draw(st.integers(0, len(value) - 1))]] * one_of(draw, (1, 1, 2, 40)))
    elif field.message_type:
        if not repeated:
            change_message(draw, value, words)
        elif value:
            change_message(draw, one_of(draw, value), words)
        else:
            value.add()
    else:
        old = one_of(draw, value) if repeated and value else None if repeated else value
        try:
            new = _scalar(draw, field, old, words)
            if not repeated:
                setattr(message, field.name, new)
            elif value and what != 2:
                value[draw(st.integers(0, len(value) - 1))] = new
            else:
                value.append(new)
        except (ValueError, TypeError, OverflowError):
            pass  # the field takes no such value


def _is_set(message: Any, field: Any) -> bool:
    """Whether a field of a message is set."""
    return any(known.name == field.name for known, _ in message.ListFields())


def _scalar(draw: Draw, field: Any, old: Any, words: Sequence[str]) -> Any:
    kind = field.cpp_type
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return one_of(draw, [float("nan"), float("inf"), -1e38, 0.0, -1.0, 1e-45, 2.0])
    if kind == field.CPPTYPE_STRING:
        return one_of(draw, [*words, *(text for text in STRINGS if len(text) < 400)])
    if kind == field.CPPTYPE_BYTES:  # nobody calls a type that has both names
        return change_bytes(draw, old) if isinstance(old, bytes) else one_of(draw, words).encode()
    return draw(st.integers(0, 24)) if draw(st.booleans()) else one_of(draw, INTEGERS)
