"""A first recipe for a data file: which column is the text, which are heads, what the splits are.

Looks at names and at values, says in comments what it passed over and why, and tries the recipe
with `prepare` before it hands it out, so that what `distill init` writes runs unchanged.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.data.labels import YES_NO
from distill.data.prepare import prepare
from distill.data.sources import READABLE, DataError, open_source
from distill.recipe.data_section import Data
from distill.recipe.load import parse_recipe

TEXT_NAMES = (
    *("text", "comment_text", "sentence", "utterance", "message", "review", "content", "body"),
    *("tweet", "comment", "question", "query", "document", "description", "input", "prompt", "title"),
)
LABEL_NAMES = ("label", "labels", "class", "category", "target", "topic", "intent", "sentiment")
ID_NAME = re.compile(r"(.*_)?(id|idx|guid|uuid|index)\Z|Unnamed.*\Z|\Z", re.IGNORECASE)
SPLIT_NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
ROWS = 200_000  # rows looked at
LONG = 60  # mean characters of a cell that is no label but prose
MANY = 1000  # labels of a head


def propose(path: Path, *, root: Path, teacher: str | None = None) -> str:
    """The YAML of a recipe for a data file or folder.

    Args:
        path: A file or folder that `sources` reads, or a folder with a train file.
        root: The folder the recipe will be written to; its data paths are relative to it.
        teacher: An encoder to write as the teacher.

    Raises:
        DataError: If the data cannot be read, or no text or no head is found in it.
    """
    sources = _splits(path, root)
    opened = open_source(sources["train"], root)
    rows = [row.cells for row in itertools.islice(opened.rows(opened.columns), ROWS)]
    cells = {column: [row[i] for row in rows] for i, column in enumerate(opened.columns)}
    notes: list[str] = []
    text = _text_column(opened.name, cells)
    data: dict[str, Any] = {"text": text} if text != "text" else {}
    for column, values in cells.items():
        words = [_word(value) for value in values]
        if column != text and ID_NAME.match(column) and len(set(words)) == len(words):
            data["id"] = column
            break
    rest = {c: v for c, v in cells.items() if c not in (text, data.get("id"))}
    heads = _heads(rest, notes)
    for split in [split for split in sources if split != "train"]:
        needed = {text, *(c for h in heads.values() for c in h.get("columns", [h.get("column")]))}
        if missing := needed - {*open_source(sources[split], root, text=text, role=split).columns}:
            notes.append(f"{sources[split]} is not used: no column {', '.join(sorted(missing))}")
            del sources[split]
    if len(heads) == 0:
        raise DataError(
            f"{opened.name}: no column looks like labels: {'; '.join(notes) or 'there is one column'}"
        )
    recipe: dict[str, Any] = {"name": _name(path), "data": {**sources, **data}, "heads": heads}
    if teacher:
        recipe["teacher"] = {"encoder": teacher}
    _settle(recipe, root, notes)
    return _yaml(recipe, notes)


def _splits(path: Path, root: Path) -> dict[str, str]:
    """The sources of the splits: a train file and those of like names beside it."""
    if path.is_dir() and (path / "dataset_dict.json").exists():
        there = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        found = {name: path.with_name(f"{path.name}#{name}") for name in there}
        train = found.get("train", next(iter(found.values())))
    else:
        if path.is_dir() and not (path / "state.json").exists():
            files = [f for f in sorted(path.glob("*train*")) if f.suffix.lower() in READABLE[:-1]]
            path = files[0] if files and not (path / "train").is_dir() else path
            path = path / "train" if (path / "train").is_dir() else path
        train, found = path, {}
        stem = path.name if path.is_dir() else path.stem
        for name in itertools.chain(*SPLIT_NAMES.values()):
            other = re.sub("train(ing)?", name, stem, count=1)
            beside = path.with_name(other if path.is_dir() else other + path.suffix)
            if other != stem and beside.exists():
                found[name] = beside
    sources = {"train": train}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            if name in found:
                sources.setdefault(split, found[name])
    return {
        split: Path(os.path.relpath(source.absolute(), root.absolute())).as_posix()
        for split, source in sources.items()
    }


def _word(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or value != value else str(value).strip()


def _text_column(name: str, cells: Mapping[str, Sequence[Any]]) -> str:
    """The column with a known name, or else the longest of those with mostly different texts."""
    length: dict[str, float] = {}
    for column, values in cells.items():
        there = [value for value in values if isinstance(value, str) and re.search(r"[^\W\d_]", value)]
        if len(there) * 2 > len(values) and len(set(there)) * 2 > len(there):
            length[column] = sum(map(len, there)) / len(there)
    for known in TEXT_NAMES:
        for column in length:
            if column.lower() == known:
                return column
    if not length:
        raise DataError(
            f"{name}: no column looks like text, expected one of mostly different strings; "
            f"the columns there are: {', '.join(map(repr, cells))}"
        )
    return max(length, key=length.__getitem__)


def _heads(cells: Mapping[str, Sequence[Any]], notes: list[str]) -> dict[str, dict[str, Any]]:
    """A head for each column that looks like labels; what does not is noted."""
    flags = [
        column
        for column, values in cells.items()
        if {_word(value).lower() for value in values if not isinstance(value, list)} - {""} <= {*YES_NO}
        and any(_word(value) for value in values)
        and not any(isinstance(value, list) for value in values)
    ]
    heads: dict[str, dict[str, Any]] = {}
    for column, values in cells.items():
        if len(flags) > 1 and column in flags:
            if column == flags[0]:
                heads[_identifier("labels", heads)] = {"columns": flags}
            continue
        head = _head(values, likely=column.lower() in LABEL_NAMES)
        if isinstance(head, str):
            notes.append(f"column {column!r} is not used: {head}")
        else:
            heads[_identifier(column, heads)] = {"column": column, **head}
    return heads


def _head(values: Sequence[Any], *, likely: bool) -> dict[str, Any] | str:
    """The settings of a column's head beside the column, or why it is none."""
    there = [value for value in values if not isinstance(value, list) and _word(value)]
    if any(isinstance(value, dict) for value in there):
        return "objects"
    lists = [value for value in values if isinstance(value, list)]
    if lists and not there:
        labels = {_word(item) for value in lists for item in value}
        few = 0 < len(labels) <= MANY and len(labels) * 2 <= sum(map(len, lists))
        return {"kind": "multi_label"} if few else "lists of mostly different values"
    counts = Counter(_word(value) for value in there)
    if len(counts) < 2:
        return "one value" if counts else "empty"
    number = all(re.fullmatch(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?", word) for word in counts)
    if number and not likely and (len(counts) > 20 or any("." in word for word in counts)):
        return "numbers"
    for separator in "|;,":
        parts = Counter(p.strip() for word in counts.elements() for p in word.split(separator) if p.strip())
        joined = sum(separator in word for word in counts)
        recombine = len(parts) < len(counts) + (separator != ",")
        short = sum(map(len, parts)) <= LONG * len(parts)
        if joined and recombine and short and len(parts) * 2 <= parts.total() and len(parts) <= MANY:
            return {"kind": "multi_label"} | ({"separator": separator} if separator != "|" else {})
    if sum(len(word) * count for word, count in counts.items()) > LONG * len(there):
        return "free text"
    if len(counts) * 2 > len(there) or len(counts) > MANY:
        return "mostly different values"
    rare = [word for word, count in counts.items() if count < 2]
    if rare and len(rare) * 4 <= 0.01 * len(there):  # well below max_bad_rows: dropping them is borne
        return {"labels": sorted(word for word, count in counts.items() if count > 1), "left out": rare}
    return {}


def _settle(recipe: dict[str, Any], root: Path, notes: list[str]) -> None:
    """Take out of the recipe what `prepare` refuses, as long as a head is left."""
    heads = recipe["heads"]
    for name, head in heads.items():
        if rare := head.pop("left out", None):
            notes.append(
                f"head {name!r}: rows of these labels, one text each, are dropped: {', '.join(rare)}"
            )
    while True:
        raw = {**recipe, "data": {**recipe["data"], "root": str(root)}}
        try:
            with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
                folder = Path(scratch, "prepared")
                folder.mkdir()
                prepare(parse_recipe(raw), folder, Path(scratch, "data_report.json"))
            return
        except DataError as error:
            named = [name for name in heads if f"head {name!r}" in str(error)]
            if "duplicate id" in str(error) and "id" in recipe["data"]:
                notes.append(f"column {recipe['data'].pop('id')!r} is not used: ids come up twice")
            elif named and len(named) < len(heads):
                for name in named:
                    line = next(x for x in str(error).splitlines() if f"head {name!r}" in x)
                    notes.append(f"left out: {line}")
                    del heads[name]
            else:
                raise


def _identifier(name: str, taken: Mapping[str, Any]) -> str:
    """A name that a head may have, and none has."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    if not re.match("[A-Za-z]", name) or name in ("encoder", "heads"):
        name = f"head_{name}".strip("_")
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


def _name(path: Path) -> str:
    path = path.absolute()
    generic = path.stem.lower() in ("train", "training", "data", "dataset")
    name = path.parent.name if generic and path.parent.name else path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "recipe"


def _yaml(recipe: Mapping[str, Any], notes: Sequence[str]) -> str:
    default = Data.model_fields["test"].default.fraction
    data = {"root": ".", **recipe["data"]}
    lines = [f"name: {_flow(recipe['name'])}", "data:"]
    for key in ("root", "train", "validation", "test", "text", "id"):
        if key in data:
            lines.append(f"  {key}: {_flow(data[key])}")
        elif key in SPLIT_NAMES:
            lines.append(f"  {key}: {{from: train, fraction: {default}}}")
    lines.append("heads:")
    lines += [f"  {name}: {_flow(head)}" for name, head in recipe["heads"].items()]
    if "teacher" in recipe:
        lines.append(f"teacher: {_flow(recipe['teacher'])}")
    return "\n".join([*lines, *(f"# {' '.join(note.split())}" for note in notes)]) + "\n"


def _flow(value: Any) -> str:
    """A value as YAML on one line; words that some reader takes for something else are quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_ ./@-]*(?<! )", value)
    if plain and value.lower() not in ("true", "false", "null", "yes", "no", "on", "off", "y", "n", "."):
        return str(value)
    return "." if value == "." else json.dumps(value, ensure_ascii=False)
