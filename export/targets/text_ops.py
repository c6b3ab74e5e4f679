"""ONNX nodes that read text: raw strings in, token ids and their mask out, a batch at a time.

The strings are parted into characters, each replaced by what the tokenizer makes of it, joined and looked
up in the vocabulary by operators of onnxruntime-extensions; the rest is plain ONNX.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.targets.wordpiece_tables import Spelling

DOMAIN = "ai.onnx.contrib"
DROPPED = "\x01"  # the operator has no empty replacement; this character is dropped itself
PER_TOKEN, LEAST = 64, 8192  # characters read of a text: for each token the network reads, and at least


class TextNodes:
    """Collects nodes and constants, every name with a prefix that no graph of ours has.

    Attributes:
        nodes: In order.
        constants: Tensors that they read.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(
        self, kind: str, *inputs: str, outputs: int = 1, own: bool = False, **attributes: Any
    ) -> list[str]:
        """Add a node, `own` if it is of the extensions; returns the names of its outputs."""
        number = len(self.nodes)
        names = [f"text/{number}/{i}" for i in range(outputs)]
        domain = DOMAIN if own else ""
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=f"text/{number}", domain=domain, **attributes)
        )
        return names

    def constant(self, value: NDArray[Any] | list[str]) -> str:
        """Add a constant, numbers or strings; returns its name."""
        name = f"text/constant/{len(self.constants)}"
        if isinstance(value, list):
            encoded = [text.encode() for text in value]
            self.constants.append(helper.make_tensor(name, TensorProto.STRING, [len(value)], encoded))
        else:
            self.constants.append(numpy_helper.from_array(value, name))
        return name

    def number(self, *values: int) -> str:
        """Add a constant int64 vector."""
        return self.constant(np.array(values, np.int64))


def read_text(nodes: TextNodes, text: str, spelling: Spelling, max_length: int, pad: int) -> tuple[str, str]:
    """Add what turns the string tensor `text` [batch] into ids and mask, int64 [batch, length].

    Args:
        nodes: Where to add.
        text: Name of the input.
        spelling: Of the tokenizer.
        max_length: Tokens of a text, those of the frame included.
        pad: The id that fills up a batch.

    Returns:
        The names of the ids and of the mask.
    """
    words, texts = _words(nodes, text, spelling, max(LEAST, max_length * PER_TOKEN))
    flat, rows = _pieces(nodes, words, texts, spelling)
    before, after = spelling.before, spelling.after
    start, count, places, inside = _grid(nodes, rows, max_length, len(before) + len(after))
    (position,) = nodes.add("Sub", places, nodes.number(len(before)))
    (behind,) = nodes.add("Sub", position, count)
    (not_after,) = nodes.add("Less", position, count)
    (not_before,) = nodes.add("Less", nodes.number(-1), position)
    (is_text,) = nodes.add("And", not_before, not_after)
    ids = _looked_up(nodes, flat, start, position, is_text, nodes.number(pad))
    for where, frame in ((places, before), (behind, after)):
        for place, number in enumerate(frame):
            (here,) = nodes.add("Equal", where, nodes.number(place))
            (ids,) = nodes.add("Where", here, nodes.number(number), ids)
    (mask,) = nodes.add("Cast", inside, to=TensorProto.INT64)
    return ids, mask


def _words(nodes: TextNodes, text: str, spelling: Spelling, longest: int) -> tuple[str, str]:
    """The words of the texts, each character as the tokenizer spells it, and offsets of texts in them."""
    # one text more, taken off again below: the operators do not survive a batch of none
    (more,) = nodes.add("Concat", text, nodes.constant([""]), axis=0)
    lines = _replace(nodes, more, "[\\n\\t]+", " ")  # the table has neither as keys
    units = "|".join([*map(re.escape, spelling.special), "."])
    letters, rows = _split(nodes, lines, f"((?s:{units}))", f"(?s:{units})")
    pairs = [*spelling.characters.items(), *((token, f" {token} ") for token in spelling.special)]
    table = "\n".join(f"{old}\t{new or DROPPED}" for old, new in pairs if old not in "\n\t\0")
    (spelt,) = nodes.add("StringMapping", letters, own=True, map=table)
    start, _, places, is_letter = _grid(nodes, rows, longest, 0)
    grid = _looked_up(nodes, spelt, start, places, is_letter, nodes.constant([""]))
    (joined,) = nodes.add("StringJoin", grid, nodes.constant([""]), nodes.number(1), own=True)
    dropped = "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in spelling.dropped)
    words, rows = _split(nodes, _replace(nodes, joined, f"[\\x01{dropped}]+", ""), "( )", "")
    (texts,) = nodes.add("Slice", rows, nodes.number(0), nodes.number(-1))
    return words, texts


def _pieces(nodes: TextNodes, words: str, texts: str, spelling: Spelling) -> tuple[str, str]:
    """The ids of the words' pieces, and offsets of texts in them.

    The operator gives the pieces it found of a word before one that it did not, and then the unknown one;
    the tokenizer gives the unknown one alone.
    """
    found, rows, *_ = nodes.add(
        *("WordpieceTokenizer", words, nodes.number()),
        outputs=4,
        own=True,
        vocab=json.dumps(spelling.vocabulary, ensure_ascii=False),
        suffix_indicator=spelling.prefix,
        unknown_token=spelling.unknown,
        max_input_chars_per_word=spelling.longest,
    )
    table = "\n".join(f"{piece}\t{number}" for piece, number in spelling.vocabulary.items() if piece.strip())
    unknown = spelling.vocabulary[spelling.unknown]
    (column,) = nodes.add("StringToVector", found, own=True, map=table, unk=str(unknown))
    (ids,) = nodes.add("Reshape", column, nodes.number(-1))
    zero, one = nodes.number(0), nodes.number(1)
    (first,) = nodes.add("Slice", rows, zero, nodes.number(-1))
    (behind,) = nodes.add("Slice", rows, one, nodes.number(2**62))
    (last,) = nodes.add("Sub", behind, one)
    (closing,) = nodes.add("Gather", ids, last)
    (broken,) = nodes.add("Equal", closing, nodes.number(unknown))
    (start,) = nodes.add("Where", broken, last, first)
    (size,) = nodes.add("Shape", ids)
    (many,) = nodes.add("Shape", first)
    (blank,) = nodes.add("Expand", zero, size)
    (ones,) = nodes.add("Expand", one, many)
    (marks,) = nodes.add("ScatterElements", blank, first, ones)
    axis = nodes.constant(np.array(0, np.int64))
    (number,) = nodes.add("CumSum", marks, axis)  # of each piece's word, from 1
    (word,) = nodes.add("Sub", number, one)
    (least,) = nodes.add("Gather", start, word)
    (each,) = nodes.add("Expand", one, size)
    (place,) = nodes.add("CumSum", each, axis, exclusive=1)
    (kept,) = nodes.add("GreaterOrEqual", place, least)
    (pieces,) = nodes.add("Compress", ids, kept)
    (counts,) = nodes.add("Cast", kept, to=TensorProto.INT64)
    (sums,) = nodes.add("CumSum", counts, axis)
    (before,) = nodes.add("Concat", zero, sums, axis=0)
    (old,) = nodes.add("Gather", rows, texts)
    (new,) = nodes.add("Gather", before, old)
    return pieces, new


def _split(nodes: TextNodes, text: str, pattern: str, keep: str) -> tuple[str, str]:
    """What lies between matches of the pattern, and of them those that `keep` matches; offsets of texts."""
    inputs = (text, nodes.constant([pattern]), nodes.constant([keep]))
    found, _, _, rows = nodes.add("StringRegexSplitWithOffsets", *inputs, outputs=4, own=True)
    return found, rows


def _replace(nodes: TextNodes, text: str, pattern: str, by: str) -> str:
    inputs = (text, nodes.constant([pattern]), nodes.constant([by]))
    (found,) = nodes.add("StringRegexReplace", *inputs, own=True)
    return found


def _grid(nodes: TextNodes, rows: str, most: int, more: int) -> tuple[str, str, str, str]:
    """From offsets [batch + 1] of a ragged tensor: start and count [batch, 1], places [1, width], inside.

    Each row has its count, at least 0, and `more`; together at most `most`. The width is the widest row's, at
    least 1, and `inside` [batch, width] says which places are of a row.
    """
    zero, one = nodes.number(0), nodes.number(1)
    (start,) = nodes.add("Slice", rows, zero, nodes.number(-1))
    (end,) = nodes.add("Slice", rows, one, nodes.number(2**62))
    (whole,) = nodes.add("Sub", end, start)
    (count,) = nodes.add("Min", whole, nodes.number(most - more))
    (framed,) = nodes.add("Add", count, nodes.number(more))
    (every,) = nodes.add("Concat", framed, one, axis=0)
    (width,) = nodes.add("ReduceMax", every, keepdims=0)
    first, step = (nodes.constant(np.array(value, np.int64)) for value in (0, 1))
    (line,) = nodes.add("Range", first, width, step)
    (places,) = nodes.add("Unsqueeze", line, zero)
    starts, counts, ends = (nodes.add("Unsqueeze", each, one)[0] for each in (start, count, framed))
    (inside,) = nodes.add("Less", places, ends)
    return starts, counts, places, inside


def _looked_up(nodes: TextNodes, flat: str, start: str, place: str, inside: str, other: str) -> str:
    """What stands in `flat` at start + place where `inside`, elsewhere `other`, a constant of one."""
    (padded,) = nodes.add("Concat", flat, other, axis=0)
    (end,) = nodes.add("Shape", flat)
    (index,) = nodes.add("Add", start, place)
    (safe,) = nodes.add("Where", inside, index, end)
    (found,) = nodes.add("Gather", padded, safe)
    return found
