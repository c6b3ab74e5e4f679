"""Checks that an ONNX file stands alone: all weights inside, no loops, only known operators.

onnxruntime would read weights from any file that an ONNX file names, and would run a loop forever. The fields
and their numbers are those of onnx.proto3; the package `onnx`, which would parse them, is too large to serve
with.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_FIELDS = 1_000_000  # of a file; a traced network of twelve layers has 30,000
_EXTERNAL = "stores weights in other files"
_LOOPS = "has loops or functions"
# for each message, what its fields hold: another message, or what is wrong with the file
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: _LOOPS, 25: _LOOPS},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "operator", 5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: _EXTERNAL, 14: "location"},
}
_DOMAINS = b"", b"ai.onnx"
_LOOP_OPERATORS = b"Loop", b"Scan", b"SequenceMap"


def check_onnx(data: bytes) -> None:
    """Check an ONNX file.

    Raises:
        ValueError: The file is not ONNX, stores weights in other files, has loops or functions, or has
            operators outside ONNX.
    """
    view, count = memoryview(data), 0
    pending = [("model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        for field, value, first, last in _fields(view, start, end):
            count += 1
            if count > MAX_FIELDS:
                raise ValueError(f"has more than {MAX_FIELDS:,} fields")
            kind = _MESSAGES[message].get(field)
            if kind is None:
                continue
            if kind in _MESSAGES:
                pending.append((kind, first, last))
            elif kind == "operator":
                if bytes(view[first:last]) in _LOOP_OPERATORS:
                    raise ValueError(_LOOPS)
            elif kind == "domain":
                if (domain := bytes(view[first:last])) not in _DOMAINS:
                    raise ValueError(f"has operators of {domain.decode(errors='replace')!r}, outside ONNX")
            elif kind != "location" or value != 0:
                raise ValueError(_EXTERNAL if kind == "location" else kind)


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int | None, int, int]]:
    """Number, value of an integer, start and end of the content of each field of a message."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < end and shift < 70:
            byte = view[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("is not an ONNX file")

    while at < end:
        key = varint()
        wire, value = key & 7, None
        if wire == 0:
            value, size = varint(), 0
        elif wire == 2:
            size = varint()
        else:
            size = {1: 8, 5: 4}.get(wire, end)  # groups are not part of ONNX
        if at + size > end or not key >> 3:
            raise ValueError("is not an ONNX file")
        yield key >> 3, value, at, at + size
        at += size
