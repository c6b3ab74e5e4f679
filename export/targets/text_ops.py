"""Builds the ONNX nodes of a WordPiece tokenizer: strings in, token ids and attention mask out.

Operators of onnxruntime-extensions split the texts into characters, replace each by its normalised form, join
them, and look words up in the vocabulary. All other nodes are plain ONNX.
"""

from __future__ import annotations

import json
import re

import numpy as np
from onnx import TensorProto

from export.graph.builder import GraphBuilder
from export.targets.wordpiece_tables import WordPieceTables

DOMAIN = "ai.onnx.contrib"
REMOVED = "\x01"  # marks removed characters, since StringMapping has no empty replacement
CHARACTERS_PER_TOKEN, MIN_CHARACTERS = 64, 8192  # longer texts are truncated to this number of characters
END = 2**62  # the end of any axis


def add_tokenizer(
    graph: GraphBuilder, text: str, tables: WordPieceTables, max_length: int, pad: int
) -> tuple[str, str]:
    """Add the nodes that tokenise a string tensor.

    Args:
        graph: Builder of the graph.
        text: Name of the string tensor `[batch]`.
        tables: Tables of the tokenizer.
        max_length: Maximum number of tokens of a text, special tokens included.
        pad: Token id of padding.

    Returns:
        The names of the token ids and of the attention mask, both int64 `[batch, length]`.
    """
    words, texts = _words(graph, text, tables, max(MIN_CHARACTERS, max_length * CHARACTERS_PER_TOKEN))
    flat, offsets = _pieces(graph, words, texts, tables)
    before, after = tables.before, tables.after
    start, count, column, inside = _grid(graph, offsets, max_length, len(before) + len(after))
    position = graph.node("Sub", column, graph.integers(len(before)))
    from_end = graph.node("Sub", position, count)
    not_before = graph.node("Less", graph.integers(-1), position)
    is_text = graph.node("And", not_before, graph.node("Less", position, count))
    ids = _take(graph, flat, start, position, is_text, graph.integers(pad))
    for places, special in ((column, before), (from_end, after)):
        for place, token in enumerate(special):
            here = graph.node("Equal", places, graph.integers(place))
            ids = graph.node("Where", here, graph.integers(token), ids)
    return ids, graph.node("Cast", inside, to=TensorProto.INT64)


def _words(graph: GraphBuilder, text: str, tables: WordPieceTables, longest: int) -> tuple[str, str]:
    """The normalised words of all texts, and the offsets of the texts in them."""
    # an empty text is appended, and removed below, since the operators crash on an empty batch
    texts = graph.node("Concat", text, _strings(graph, ""), axis=0)
    lines = _replace(graph, texts, "[\\n\\t]+", " ")  # the keys of StringMapping cannot contain these
    units = "|".join([*map(re.escape, tables.special), "."])
    characters, offsets = _split(graph, lines, f"((?s:{units}))", f"(?s:{units})")
    pairs = [*tables.characters.items(), *((token, f" {token} ") for token in tables.special)]
    table = "\n".join(f"{old}\t{new or REMOVED}" for old, new in pairs if old not in "\n\t\0")
    normalised = graph.node("StringMapping", characters, domain=DOMAIN, map=table)
    start, _, column, inside = _grid(graph, offsets, longest, 0)
    grid = _take(graph, normalised, start, column, inside, _strings(graph, ""))
    joined = graph.node("StringJoin", grid, _strings(graph, ""), graph.integers(1), domain=DOMAIN)
    removed = "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in tables.removed)
    words, offsets = _split(graph, _replace(graph, joined, f"[\\x01{removed}]+", ""), "( )", "")
    return words, graph.node("Slice", offsets, graph.integers(0), graph.integers(-1))


def _pieces(graph: GraphBuilder, words: str, texts: str, tables: WordPieceTables) -> tuple[str, str]:
    """The ids of the pieces of all words, and the offsets of the texts in them.

    For a word with an unknown piece, the operator returns the pieces before it and then the unknown token.
    The tokenizer returns only the unknown token, so these pieces are removed.
    """
    found, offsets, *_ = graph.node_with_outputs(
        *("WordpieceTokenizer", words, graph.integers()),
        outputs=4,
        domain=DOMAIN,
        vocab=json.dumps(tables.vocabulary, ensure_ascii=False),
        suffix_indicator=tables.prefix,
        unknown_token=tables.unknown,
        max_input_chars_per_word=tables.max_word,
    )
    table = "\n".join(f"{piece}\t{number}" for piece, number in tables.vocabulary.items() if piece.strip())
    unknown = tables.vocabulary[tables.unknown]
    column = graph.node("StringToVector", found, domain=DOMAIN, map=table, unk=str(unknown))
    ids = graph.node("Reshape", column, graph.integers(-1))
    zero, one = graph.integers(0), graph.integers(1)
    first = graph.node("Slice", offsets, zero, graph.integers(-1))
    last = graph.node("Sub", graph.node("Slice", offsets, one, graph.integers(END)), one)
    is_unknown = graph.node("Equal", graph.node("Gather", ids, last), graph.integers(unknown))
    first_kept = graph.node("Where", is_unknown, last, first)
    size = graph.node("Shape", ids)
    ones = graph.node("Expand", one, graph.node("Shape", first))
    starts = graph.node("ScatterElements", graph.node("Expand", zero, size), first, ones)
    axis = graph.constant(np.int64(0))
    word = graph.node("Sub", graph.node("CumSum", starts, axis), one)  # of each piece
    position = graph.node("CumSum", graph.node("Expand", one, size), axis, exclusive=1)
    kept = graph.node("GreaterOrEqual", position, graph.node("Gather", first_kept, word))
    sums = graph.node("CumSum", graph.node("Cast", kept, to=TensorProto.INT64), axis)
    kept_before = graph.node("Concat", zero, sums, axis=0)
    text_offsets = graph.node("Gather", kept_before, graph.node("Gather", offsets, texts))
    return graph.node("Compress", ids, kept), text_offsets


def _strings(graph: GraphBuilder, *values: str) -> str:
    return graph.constant(np.array(values, object))


def _split(graph: GraphBuilder, text: str, pattern: str, keep: str) -> tuple[str, str]:
    """The parts of texts between matches of `pattern`, with the matches of `keep`; offsets of the texts."""
    inputs = (text, _strings(graph, pattern), _strings(graph, keep))
    parts, _, _, offsets = graph.node_with_outputs(
        "StringRegexSplitWithOffsets", *inputs, outputs=4, domain=DOMAIN
    )
    return parts, offsets


def _replace(graph: GraphBuilder, text: str, pattern: str, replacement: str) -> str:
    inputs = (text, _strings(graph, pattern), _strings(graph, replacement))
    return graph.node("StringRegexReplace", *inputs, domain=DOMAIN)


def _grid(graph: GraphBuilder, offsets: str, longest: int, extra: int) -> tuple[str, str, str, str]:
    """The layout of a ragged tensor as a grid, from the offsets `[batch + 1]` of its rows.

    Each row has `extra` more cells, and is truncated to `longest` cells.

    Returns:
        The start and the number of elements of each row, `[batch, 1]`; the columns of the grid, `[1, width]`;
        and whether a cell belongs to its row, `[batch, width]`. The width is at least 1.
    """
    zero, one = graph.integers(0), graph.integers(1)
    start = graph.node("Slice", offsets, zero, graph.integers(-1))
    end = graph.node("Slice", offsets, one, graph.integers(END))
    count = graph.node("Min", graph.node("Sub", end, start), graph.integers(longest - extra))
    cells = graph.node("Add", count, graph.integers(extra))
    width = graph.node("ReduceMax", graph.node("Concat", cells, one, axis=0), keepdims=0)
    bounds = (graph.constant(np.int64(0)), width, graph.constant(np.int64(1)))
    columns = graph.node("Unsqueeze", graph.node("Range", *bounds), zero)
    starts, counts, ends = (graph.node("Unsqueeze", each, one) for each in (start, count, cells))
    return starts, counts, columns, graph.node("Less", columns, ends)


def _take(graph: GraphBuilder, flat: str, start: str, offset: str, inside: str, default: str) -> str:
    """The elements of `flat` at start + offset where `inside`, and the constant `default` elsewhere."""
    padded = graph.node("Concat", flat, default, axis=0)
    index = graph.node("Where", inside, graph.node("Add", start, offset), graph.node("Shape", flat))
    return graph.node("Gather", padded, index)
