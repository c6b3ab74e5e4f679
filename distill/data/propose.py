"""Proposes a recipe for a data file: the text column, the heads and the splits.

The names and the values of the columns determine the proposal. It is tested with `prepare`, so the recipe
that `distill init` writes runs unchanged. Its comments give the label counts, and the columns and files that
are not used.
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

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from distill.data.labels import YES_NO, word_of
from distill.data.prepare import DataReport, prepare
from distill.data.sources import READABLE, DataError, open_source
from distill.recipe.data_section import Data
from distill.recipe.load import parse_recipe
from distill.recipe.schema import Recipe

TEXT_NAMES = (
    *("text", "comment_text", "sentence", "utterance", "message", "review", "content", "body"),
    *("tweet", "comment", "question", "query", "document", "description", "input", "prompt", "title"),
)
LABEL_NAMES = ("label", "labels", "class", "category", "target", "topic", "intent", "sentiment")
ID_NAME = re.compile(r"(.*_)?(id|idx|guid|uuid|index)\Z|Unnamed.*\Z|\Z", re.IGNORECASE)
SPLIT_NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
YAML_1_1_WORDS = {"yes", "no", "on", "off", "y", "n"}  # booleans in YAML 1.1
ROWS = 200_000  # the first rows, which are used to choose the heads
LONG = 60  # mean characters of cells, over which they are free text
MANY = 1000  # most labels of a head
SHOWN = 8  # labels that a comment counts


def propose(path: Path, *, root: Path, teacher: str | None = None) -> str:
    """A commented recipe, in YAML, for a file, a folder, or a folder with a train file.

    Data paths are relative to `root`, the folder of the recipe. `teacher` is the encoder to write, if any.

    Raises:
        DataError: The data cannot be read, or has no text column or no head.
    """
    sources = _splits(path, root)
    opened = open_source(sources["train"], root)
    rows = [row.cells for row in itertools.islice(opened.rows(opened.columns), ROWS)]
    cells = {column: [row[i] for row in rows] for i, column in enumerate(opened.columns)}
    notes: list[str] = []
    if len(rows) == ROWS:
        notes.append(f"only the first {ROWS:,} rows of {opened.name} were used to choose the heads")
    text = _text_column(opened.name, cells)
    data: dict[str, Any] = {"text": text} if text != "text" else {}
    for column, values in cells.items():
        words = [word_of(value) for value in values]
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
    if not heads:
        raise DataError(
            f"{opened.name}: no column looks like labels: {'; '.join(notes) or 'there is one column'}"
        )
    recipe: dict[str, Any] = {"name": _name(path), "data": {**sources, **data}, "heads": heads}
    if teacher:
        recipe["teacher"] = {"encoder": teacher}
    report = _try(recipe, root, notes)
    return _yaml(recipe, report, notes)


def _splits(path: Path, root: Path) -> dict[str, str]:
    """The sources of the splits: a train file, and the validation and test files beside it."""
    if path.is_dir() and (path / "dataset_dict.json").exists():
        saved = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        present = {name: path.with_name(f"{path.name}#{name}") for name in saved}
        train = present.get("train", next(iter(present.values())))
    else:
        if path.is_dir() and not (path / "state.json").exists():
            files = sorted(path.glob("*train*"), key=lambda file: (len(file.name), file.name))
            files = [file for file in files if file.suffix.lower() in READABLE[:-1]]
            path = files[0] if files and not (path / "train").is_dir() else path
            path = path / "train" if (path / "train").is_dir() else path
        train, present = path, {}
        stem = path.name if path.is_dir() else path.stem
        for name in itertools.chain(*SPLIT_NAMES.values()):
            other = re.sub("train(ing)?", name, stem, count=1)
            beside = path.with_name(other if path.is_dir() else other + path.suffix)
            if other != stem and beside.exists():
                present[name] = beside
    sources = {"train": train}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            if name in present:
                sources.setdefault(split, present[name])
    return {
        split: Path(os.path.relpath(source.absolute(), root.absolute())).as_posix()
        for split, source in sources.items()
    }


def _text_column(name: str, cells: Mapping[str, Sequence[Any]]) -> str:
    """The column with a known name, or else the one with the longest of mostly different texts."""
    length: dict[str, float] = {}
    for column, values in cells.items():
        texts = [value for value in values if isinstance(value, str) and re.search(r"[^\W\d_]", value)]
        if len(texts) * 2 > len(values) and len(set(texts)) * 2 > len(texts):
            length[column] = sum(map(len, texts)) / len(texts)
    for known in TEXT_NAMES:
        for column in length:
            if column.lower() == known:
                return column
    if not length:
        raise DataError(
            f"{name}: no column looks like text, expected one of mostly different strings, "
            f"the columns are: {', '.join(map(repr, cells))}"
        )
    return max(length, key=length.__getitem__)


def _heads(cells: Mapping[str, Sequence[object]], notes: list[str]) -> dict[str, dict[str, Any]]:
    """A head for each column that looks like labels. The other columns are noted."""
    flags = [
        column
        for column, values in cells.items()
        if {word_of(value).lower() for value in values if not isinstance(value, list)} - {""} <= {*YES_NO}
        and any(word_of(value) for value in values)
        and not any(isinstance(value, list) for value in values)
    ]
    heads: dict[str, dict[str, Any]] = {}
    for column, values in cells.items():
        if len(flags) > 1 and column in flags:
            if column == flags[0]:
                heads[_identifier("labels", heads)] = {"columns": flags}
            continue
        head, note = _head(values, likely=column.lower() in LABEL_NAMES)
        if head is None:
            notes.append(f"column {column!r} is not used: {note}")
            continue
        name = _identifier(column, heads)
        heads[name] = {"column": column, **head}
        if note:
            notes.append(f"head {name!r}: {note}")
    return heads


def _head(values: Sequence[Any], *, likely: bool) -> tuple[dict[str, Any] | None, str]:
    """The settings of a column's head and a note; None and the reason if the column is not a head."""
    cells = [value for value in values if not isinstance(value, list) and word_of(value)]
    if any(isinstance(value, dict) for value in cells):
        return None, "objects"
    lists = [value for value in values if isinstance(value, list)]
    if lists and not cells:
        labels = {word_of(item) for value in lists for item in value}
        if 0 < len(labels) <= MANY and len(labels) * 2 <= sum(map(len, lists)):
            return {"kind": "multi_label"}, ""
        return None, "lists of mostly different values"
    counts = Counter(word_of(value) for value in cells)
    if len(counts) < 2:
        return None, "one value" if counts else "empty"
    number = all(re.fullmatch(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?", word) for word in counts)
    if number and not likely and (len(counts) > 20 or any("." in word for word in counts)):
        return None, "numbers"
    for separator in "|;,":
        parts = Counter(p.strip() for word in counts.elements() for p in word.split(separator) if p.strip())
        joined = sum(separator in word for word in counts)
        recombine = len(parts) < len(counts) + (separator != ",")
        short = sum(map(len, parts)) <= LONG * len(parts)
        if joined and recombine and short and len(parts) * 2 <= parts.total() and len(parts) <= MANY:
            return {"kind": "multi_label"} | ({"separator": separator} if separator != "|" else {}), ""
    if sum(len(word) * count for word, count in counts.items()) > LONG * len(cells):
        return None, "free text"
    if len(counts) * 2 > len(cells) or len(counts) > MANY:
        return None, "mostly different values"
    rare = [word for word, count in counts.items() if count < 2]
    if rare and len(rare) * 4 <= 0.01 * len(cells):  # well below max_bad_rows, so they may be dropped
        frequent = sorted(word for word, count in counts.items() if count > 1)
        return {"labels": frequent}, f"rows of these labels, one text each, are dropped: {', '.join(rare)}"
    return {}, ""


def _try(recipe: dict[str, Any], root: Path, notes: list[str]) -> DataReport:
    """The report of `prepare`. Heads that it rejects are removed from the recipe if others are left."""
    heads = recipe["heads"]
    while True:
        raw = {**recipe, "data": {**recipe["data"], "root": str(root)}}
        try:
            with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
                folder, path = Path(scratch, "prepared"), Path(scratch, "data_report.json")
                folder.mkdir()
                prepare(parse_recipe(raw), folder, path)
                report: DataReport = json.loads(path.read_text("utf-8"))
                return report
        except DataError as error:
            named = [name for name in heads if f"head {name!r}" in str(error)]
            if "duplicate id" in str(error) and "id" in recipe["data"]:
                notes.append(f"column {recipe['data'].pop('id')!r} is not used: ids are repeated")
            elif named and len(named) < len(heads):
                for name in named:
                    line = next(x for x in str(error).splitlines() if f"head {name!r}" in x)
                    notes.append(f"left out: {line}")
                    del heads[name]
            else:
                raise


def _identifier(name: str, used: Mapping[str, Any]) -> str:
    """A valid name for a head that is not in `used`."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    if not re.match("[A-Za-z]", name) or name in ("encoder", "heads"):
        name = f"head_{name}".strip("_")
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in used)


def _name(path: Path) -> str:
    path = path.absolute()
    generic = path.stem.lower() in ("train", "training", "data", "dataset")
    name = path.parent.name if generic and path.parent.name else path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "recipe"


def _yaml(recipe: Mapping[str, Any], report: DataReport, notes: Sequence[str]) -> str:
    """The recipe with comments on its rows, labels and defaults, and the notes at the end."""
    fraction = {"from": "train", "fraction": Data.model_fields["test"].default.fraction}
    about = {split: f"{rows:,} rows" for split, rows in report["rows"].items()}
    about |= {
        split: f"the default, a stratified sample of train: {about[split]}"
        for split in SPLIT_NAMES
        if split not in recipe["data"]
    }
    about |= {"root": "data paths are relative to it", "text": "the column of the texts"}
    about |= {"id": "no two rows have the same value"}
    written = {"root": ".", "train": None, "validation": fraction, "test": fraction} | recipe["data"]
    data, heads = CommentedMap(), CommentedMap()
    column = max(len(f"  {key}: {value} ".replace("'", "")) for key, value in written.items())
    for key, value in written.items():
        data[key] = _flow(value)
        data.yaml_add_eol_comment(about[key], key, column=column)
    for name, head in recipe["heads"].items():
        heads[name] = _flow(head)
        comment = _label_counts(report["labels"][name], several="columns" in head or "kind" in head)
        heads.yaml_set_comment_before_after_key(name, before=comment, indent=2)
    document = CommentedMap({"name": _flow(recipe["name"]), "data": data, "heads": heads})
    if "teacher" in recipe:
        document["teacher"] = _flow(recipe["teacher"])
    else:
        default = Recipe.model_fields["teacher"].default.encoder
        notes = [f"teacher: {{encoder: {default}}}   (the default)", *notes]
    yaml = YAML()
    yaml.width = 1_000_000
    yaml.dump(document, stream := io.StringIO())
    return stream.getvalue() + "".join(f"# {_printable(note)}\n" for note in notes)


def _label_counts(labels: Mapping[str, Mapping[str, int]], *, several: bool) -> str:
    """A comment on a head: the number of its labels, and the texts with each of the most frequent."""
    counts = Counter({label: sum(texts.values()) for label, texts in labels.items()})
    first = ", ".join(f"{label} {count:,}" for label, count in counts.most_common(SHOWN))
    others = f", {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    kind = "any number per text" if several else "one per text"
    hint = " (add `none: none` if none means that no label applies)" if several and "none" in labels else ""
    return _printable(f"{len(counts)} labels, {kind}. Texts: {first}{others}{hint}")


def _printable(text: str) -> str:
    """The text on one line, without characters that a YAML comment may not contain."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _flow(value: Any) -> Any:
    """A value that ruamel.yaml writes on one line; booleans of YAML 1.1 are quoted."""
    if isinstance(value, str):
        quote = not value.isprintable() or value.lower() in YAML_1_1_WORDS
        return DoubleQuotedScalarString(value) if quote else value
    node: CommentedMap | CommentedSeq
    if isinstance(value, dict):
        node = CommentedMap({_flow(key): _flow(part) for key, part in value.items()})
    elif isinstance(value, list):
        node = CommentedSeq([_flow(part) for part in value])
    else:
        return value
    node.fa.set_flow_style()
    return node
