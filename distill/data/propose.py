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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from distill.data.columns import head_columns, id_column, is_row, remarks, text_column
from distill.data.prepare import DataReport, InvalidRows, prepare
from distill.data.rows import LOG
from distill.data.sources import READABLE, DataError, encoding_hint, open_source
from distill.recipe.data_section import Data
from distill.recipe.load import parse_recipe
from distill.recipe.schema import Recipe

SPLIT_NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
FILES = READABLE[:-1]
YAML_1_1_WORDS = {"yes", "no", "on", "off", "y", "n"}  # booleans in YAML 1.1
ROWS, COLUMNS = 200_000, 1000  # the first ones, which are used to choose the heads
UNUSED = 40  # columns that are not used and are named
PATH_STEPS = {"choices", "value", "values", "label", "labels", "name", "text"}  # say nothing about a head
SHOWN, NOTE = 8, 150  # labels that a comment counts, files that it names; characters of a reason in an error
COMMENT, COLUMN = 1000, 90  # characters of a comment, and in front of it
BAD_ROWS = (0.02, 0.05, 0.1, 0.2)  # shares of invalid rows that a recipe allows, if the default is too small


def propose(path: Path, *, root: Path, teacher: str | None = None) -> str:
    """A commented recipe, in YAML, for a file, a folder, or a folder with a train file.

    Data paths are relative to `root`, the folder of the recipe. `teacher` is the encoder to write, if any.

    Raises:
        DataError: The data cannot be read, or has no text column or no head.
    """
    notes: list[str] = []
    sources, data = _splits(path, root, notes), dict[str, Any]()
    if encoding := encoding_hint(sources["train"], root):
        data["encoding"] = encoding
    opened = open_source(sources["train"], root, encoding=encoding)
    if opened.repeated:
        names = ", ".join(map(repr, sorted(opened.repeated)))
        notes.append(f"columns of the name {names} are not used: several have it (rename them)")
    columns = [column for column in opened.columns if column not in opened.repeated]
    if len(columns) > COLUMNS:
        notes.append(f"only the first {COLUMNS:,} of {len(columns):,} columns were read")
        columns = columns[:COLUMNS]
    every = opened.rows(columns)
    rows = [row.cells for row in itertools.islice(every, ROWS)]
    read = {"train": len(rows) + sum(1 for _ in every)}
    if read["train"] > ROWS:
        notes.append(f"only the first {ROWS:,} rows of {opened.name} were used to choose the heads")
    cells = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
    text = text_column(opened.name, cells)
    if Path(opened.name).suffix.lower() in (".csv", ".tsv", ".xlsx") and is_row(text, cells):
        todo = "add one, such as text,label"
        raise DataError(
            f"{opened.name}: the first row looks like data, expected the names of columns ({todo})"
        )
    data |= {"text": text} if text != "text" else {}
    if (identity := id_column(text, cells)) is not None:
        data["id"] = identity
    rest = {c: v for c, v in cells.items() if c not in (text, identity)}
    found, others = head_columns(rest)
    heads: dict[str, dict[str, Any]] = {}
    for column, head in found.items():
        heads[_identifier("labels" if "columns" in head else column, heads)] = head
    parents = {column.rpartition(".")[0] for column in columns}
    unused = {c: why for c, why in others.items() if why != "objects" or c not in parents}
    notes += [f"column {column!r} is not used: {why}" for column, why in [*unused.items()][:UNUSED]]
    if len(unused) > UNUSED:
        notes.append(f"{len(unused) - UNUSED:,} more columns are not used")
    if title := next((c for c in others if c.lower() in ("title", "subject", "headline", "summary")), None):
        notes.append(f"`text: [{title}, {text}]` would read {title} and {text} as one text, on two lines")
    for split in [split for split in sources if split != "train"]:
        beside = open_source(sources[split], root, text=text, role=split, encoding=encoding)
        labels = {c for h in heads.values() for c in h.get("columns", [h.get("column")])}
        lost = {text} - {*beside.columns} or (set() if labels & {*beside.columns} else labels)
        if lost:
            notes.append(f"{sources.pop(split)} is not used: no column {', '.join(sorted(lost))}")
        else:
            read[split] = sum(1 for _ in beside.rows([text]))
    if not heads:
        why = "; ".join(f"{note[:NOTE]}…" if len(note) > NOTE else note for note in notes[-SHOWN:])
        why = why or "there is one column"
        raise DataError(f"{opened.name}: no column looks like labels: {why}")
    recipe: dict[str, Any] = {"name": _name(path), "data": {**sources, **data}, "heads": heads}
    if teacher:
        recipe["teacher"] = {"encoder": teacher}
    report = _try(recipe, root, notes)
    return _yaml(recipe, report, read, notes)


def _splits(path: Path, root: Path, notes: list[str]) -> dict[str, str]:
    """The sources of the splits: a train file, and the validation and test files beside it."""
    unused: list[str] = []
    if path.is_dir() and (path / "dataset_dict.json").exists():
        saved = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        present = {name: path.with_name(f"{path.name}#{name}") for name in saved}
        train = present.get("train", next(iter(present.values())))
    else:
        if path.is_dir() and not (path / "state.json").exists():
            path, unused = _train_file(path)
        train, present = path, {}
        stem = path.name if path.is_dir() else path.stem
        for name in itertools.chain(*SPLIT_NAMES.values()):
            other = re.sub("train(ing)?", name, stem, count=1, flags=re.IGNORECASE)
            endings = [""] if path.is_dir() else [path.suffix, *FILES]
            beside = [path.with_name(other + ending) for ending in endings if other != stem]
            if existing := [file for file in beside if file.exists()]:
                present[name] = existing[0]
    sources = {"train": train}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            if name in present:
                sources.setdefault(split, present[name])
    used = {source.name for source in sources.values()}
    if passed := [name for name in unused if name not in used]:
        more = f" and {len(passed) - SHOWN} more" if len(passed) > SHOWN else ""
        notes.append(f"files that are not used: {', '.join(passed[:SHOWN])}{more}")
    return {
        split: Path(os.path.relpath(source.absolute(), root.absolute())).as_posix()
        for split, source in sources.items()
    }


def _train_file(folder: Path) -> tuple[Path, list[str]]:
    """The train file or folder in a folder, and the other files that could be read.

    It is `train.*`, else the file with the shortest name that contains train, else the only file.
    """
    files = [
        file
        for file in sorted(folder.iterdir(), key=lambda file: (len(file.name), file.name))
        if file.suffix.lower() in FILES and file.is_file() and not file.name.startswith((".", "~$"))
    ]
    names = [file.name for file in files]
    if (folder / "train").is_dir():
        return folder / "train", names
    trains = [file for file in files if "train" in file.stem.lower()]
    trains.sort(key=lambda file: file.stem.lower() != "train")
    if not files and not any(folder.glob("*.txt")):
        raise DataError(f"{folder}: has no file that can be read, expected one of: {', '.join(FILES)}")
    if not trains and len(files) > 1 and any(file.suffix.lower() != ".txt" for file in files):
        raise DataError(
            f"{folder}: several files and no train file: {', '.join(names[:SHOWN])} (name one of them)"
        )
    only = files[0] if len(files) == 1 and files[0].suffix.lower() != ".txt" else folder
    return (trains[0] if trains else only), names


def _try(recipe: dict[str, Any], root: Path, notes: list[str]) -> DataReport:
    """The report of `prepare`, after the recipe is changed until `prepare` accepts it.

    Labels of few texts, ids that are repeated and a head that is rejected are left out, and more invalid rows
    are allowed.
    """
    heads, data, shares = recipe["heads"], recipe["data"], iter(BAD_ROWS)
    while True:
        raw = {**recipe, "data": {**data, "root": str(root)}}
        try:
            with tempfile.TemporaryDirectory() as scratch, _quiet():
                folder, path = Path(scratch, "prepared"), Path(scratch, "data_report.json")
                folder.mkdir()
                prepare(parse_recipe(raw), folder, path)
                report: DataReport = json.loads(path.read_text("utf-8"))
                return report
        except DataError as error:
            named = [name for name in heads if f"head {name!r}" in str(error)]
            if "duplicate id" in str(error) and "id" in data:
                notes.append(f"column {data.pop('id')!r} is not used: ids are repeated")
            elif isinstance(error, InvalidRows) and (share := next(shares, None)):
                data["max_bad_rows"] = share
            elif frequent := [name for name in named if "min_texts" not in heads[name]]:
                for name in frequent:
                    heads[name]["min_texts"] = 2
            elif named and len(named) < len(heads):
                for name in named:
                    line = next(x for x in str(error).splitlines() if f"head {name!r}" in x)
                    notes.append(f"left out: {line}")
                    del heads[name]
            else:
                raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Logs nothing, as the recipe says in comments what was found."""
    before, LOG.disabled = LOG.disabled, True
    try:
        yield
    finally:
        LOG.disabled = before


def _identifier(name: str, used: Mapping[str, Any]) -> str:
    """A valid name for a head that is not in `used`."""
    steps = [step for step in name.split(".") if step not in PATH_STEPS and not step.isdecimal()]
    name = re.sub(r"[^A-Za-z0-9_]+", "_", steps[-1] if "." in name and steps else name).strip("_")
    if not re.match("[A-Za-z]", name) or name in ("encoder", "heads"):
        name = f"head_{name}".strip("_")
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in used)


def _name(path: Path) -> str:
    path = path.absolute()
    generic = path.stem.lower() in ("train", "training", "data", "dataset")
    name = path.parent.name if generic and path.parent.name else path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "recipe"


def _yaml(
    recipe: Mapping[str, Any], report: DataReport, read: Mapping[str, int], notes: Sequence[str]
) -> str:
    """The recipe with comments on its rows, labels and defaults, and the notes at the end."""
    fraction = {"from": "train", "fraction": Data.model_fields["test"].default.fraction}
    about = {
        split: f"the default, a stratified sample of train: {report['rows'][split]:,} rows"
        for split in SPLIT_NAMES
    }
    about |= {split: f"{rows:,} rows" for split, rows in read.items()}
    about |= {"root": "data paths are relative to it", "text": "the column of the texts"}
    about |= {"id": "no two rows have the same value", "encoding": "probable, as the files are not UTF-8"}
    about |= {"max_bad_rows": "the share of invalid rows that may be dropped, by default 0.01"}
    for what, kinds in (("dropped", report["dropped"]), ("removed", report["leaked"])):
        for kind, rows in kinds.items():
            count = "1 row is" if rows["count"] == 1 else f"{rows['count']:,} rows are"
            first = rows["first"][0]
            notes = [*notes, f"{count} {what}: {kind}, first {first['file']}:{first['line']}"]
    written = {"root": ".", "train": None, "validation": fraction, "test": fraction} | recipe["data"]
    data, heads = CommentedMap(), CommentedMap()
    widths = [len(f"  {key}: {value} ".replace("'", "")) for key, value in written.items()]
    column = min(max(widths), COLUMN)
    for key, value in written.items():
        data[key] = _flow(value)
        data.yaml_add_eol_comment(about[key], key, column=column)
    for name, head in recipe["heads"].items():
        heads[name] = _flow(head)
        counts = Counter({x: sum(texts.values()) for x, texts in report["labels"][name].items()})
        rare = report["rare"].get(name, {})
        several = "columns" in head or "kind" in head
        others = {label: n for label, n in counts.items() if not (several and label == "none")}
        lines = [_label_counts(counts, several=several), *remarks(others)]
        splits = ("train", *SPLIT_NAMES)
        texts, labelled = (
            sum(part[split] for split in splits) for part in (report["rows"], report["labelled"][name])
        )
        if texts > labelled:
            hint = " (add `none: ''` if an empty cell means that no label applies)"
            lines.append(f"Texts without a label: {texts - labelled:,}{hint if 'kind' in head else ''}")
        if spellings := report["spellings"].get(name):
            lines.append(f"Other spellings that are read as these labels: {len(spellings)}")
        if rare:
            shown = ", ".join([*rare][:SHOWN]) + (
                f" and {len(rare) - SHOWN} more" if len(rare) > SHOWN else ""
            )
            lines.append(f"Left out by min_texts, with fewer texts in train: {shown}")
        comment = "\n".join(map(_printable, lines))
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


def _label_counts(counts: Counter[str], *, several: bool) -> str:
    """A comment on a head: the number of its labels, and the texts with each of the most frequent."""
    first = ", ".join(f"{label} {count:,}" for label, count in counts.most_common(SHOWN))
    others = f", {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    kind = "any number per text" if several else "one per text"
    hint = " (add `none: none` if none means that no label applies)" if several and "none" in counts else ""
    return f"{len(counts)} labels, {kind}. Texts: {first}{others}{hint}"


def _printable(text: str) -> str:
    """The text on one line of a YAML comment, without characters that it may not contain."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= COMMENT else f"{line[:COMMENT]}…"


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
