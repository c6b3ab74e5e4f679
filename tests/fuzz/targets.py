"""The readers of files that may come from anyone: how each file is damaged, and what must hold of the result.

A case is the files of a folder. A target is used as a user would: it works, or raises one of its classes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
from hypothesis import strategies as st

from export import BundleError, Classifier
from export.bundle.manifest import FP32, MANIFEST, PACKED, TOKENIZER, _digest
from tests.fuzz import seeds
from tests.fuzz.mutations import (
    Draw,
    Object,
    change_bytes,
    change_message,
    change_tree,
    flip_bits,
    one_of,
    parsed,
    rendered,
)
from tests.fuzz.values import COMPONENTS, ENCODINGS, GRAPH_WORDS, INTEGERS, STRINGS, TEXTS, XML, YAML

Case = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """How files are damaged and used.

    Attributes:
        name: Of the target.
        cases: The damaged files.
        use: Uses the files of a folder; raises AssertionError if a result is wrong.
        allowed: The classes that it may raise.
    """

    name: str
    cases: st.SearchStrategy[Case]
    use: Callable[[Path], None]
    allowed: tuple[type[Exception], ...]


def cases(function: Callable[[Draw], Case]) -> st.SearchStrategy[Case]:
    """The strategy of a function that draws a case."""
    return st.composite(lambda draw: function(draw))()


# bundles


def sealed(manifest: Any, files: Case, *, whole: bool = True) -> Case:
    """The bundle with its manifest, whose digests fit, as those of a hostile author do."""
    records = [
        (name, Object([("sha256", sha256(data).hexdigest()), ("bytes", len(data))]))
        for name, data in files.items()
    ]
    if whole:
        manifest = Object([(key, Object(records) if key == "files" else value) for key, value in manifest])
    text = rendered(manifest)
    try:
        document = json.loads(text)
        old = document.pop("digest")
        text = text.replace(old, _digest(document))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # the digest is as it was
    return {**files, MANIFEST: text.encode("utf-8", "surrogatepass")}


def _original(draw: Draw) -> tuple[Any, Case]:
    """The manifest and the other files of a bundle: half of them are packed."""
    files = dict(one_of(draw, [seeds.bundle, seeds.packed_bundle])())
    return parsed(files.pop(MANIFEST)), files


@cases
def manifests(draw: Draw) -> Case:
    manifest, files = _original(draw)
    if draw(st.integers(0, 9)) == 0:
        return {**files, MANIFEST: change_bytes(draw, rendered(manifest).encode())}
    return sealed(change_tree(draw, parsed(rendered(manifest))), files, whole=False)


@cases
def tokenizers(draw: Draw) -> Case:
    manifest, files = _original(draw)
    data = one_of(draw, _tokenizers())
    if draw(st.integers(0, 9)) == 0:
        data = change_bytes(draw, data)
    else:
        data = rendered(change_tree(draw, parsed(data), COMPONENTS)).encode("utf-8", "surrogatepass")
    return sealed(manifest, {**files, TOKENIZER: data})


@cache
def _tokenizers() -> list[bytes]:
    return seeds.tokenizers()


@cases
def graphs(draw: Draw) -> Case:
    manifest, files = _original(draw)
    if draw(st.integers(0, 9)) == 0:
        data = change_bytes(draw, files[FP32])
    else:
        model = onnx.ModelProto.FromString(files[FP32])
        for _ in range(draw(st.integers(1, 3))):
            change_message(draw, model if draw(st.integers(0, 9)) == 0 else model.graph, GRAPH_WORDS)
        data = model.SerializeToString()
    return sealed(manifest, {**files, FP32: data})


def use_bundle(folder: Path) -> None:
    """Load a bundle and classify texts with it in every way."""
    classifier = Classifier.load(folder, threads=1)
    answers = [classifier(text) for text in TEXTS]
    answers += classifier(TEXTS * 2, batch_size=3)
    answers += classifier(TEXTS, scores=True)
    answers.append(classifier("a", heads=classifier.heads[-1:], top_k=1))
    classifier.tokens(TEXTS)
    if classifier.manifest.kind == PACKED:
        _use_labels(classifier)
    json.dumps(answers, ensure_ascii=False, allow_nan=False).encode()
    for answer in answers:
        for found in answer.values():
            for one in found if isinstance(found, list) else [found]:
                assert isinstance(one["label"], str) and 0 <= one["score"] <= 1.0000001, one


def _use_labels(classifier: Classifier) -> None:
    """Classify texts with other labels, and with one of them alone."""
    head = classifier.heads[0]
    for labels in (["where", "is my order"], {"a b": "please", "thanks": None}, TEXTS):
        try:
            view = classifier.with_labels(labels, head, hypothesis="cancel the order now please")
        except ValueError:
            continue
        beside = view.logits(TEXTS)[head]
        alone = view.with_labels([view.labels(head)[-1]], head).logits(TEXTS)[head]
        assert alone.shape == (len(TEXTS), 1) and beside.shape[1] == len(view.labels(head))


@cases
def reads(draw: Draw) -> Case:
    files = dict(seeds.bundle())
    manifest = parsed(files.pop(MANIFEST))
    reads = next(value for key, value in manifest if key == "reads")
    changed = change_tree(draw, parsed(rendered(reads)))
    manifest = Object([(key, changed if key == "reads" else value) for key, value in manifest])
    return {**sealed(manifest, files), "data.csv": seeds.delimited(seeds.table())}


def use_reads(folder: Path) -> None:
    """Measure a bundle on a labelled file."""
    from distill.evaluation.evaluate_bundle import evaluate_bundle

    found = evaluate_bundle(Classifier.load(folder, threads=1), str(folder / "data.csv"))
    json.dumps(found, allow_nan=False)


# recipes


@cases
def recipes(draw: Draw) -> Case:
    from distill.recipe.load import dump_yaml

    recipe = one_of(draw, seeds.RECIPES)
    if draw(st.integers(0, 3)) == 0:
        return {"recipe.yaml": change_bytes(draw, dump_yaml(recipe).encode())}
    case = {"recipe.yaml": json.dumps(recipe).encode()}
    if draw(st.integers(0, 3)):
        case["recipe.yaml"] = rendered(change_tree(draw, parsed(json.dumps(recipe)), YAML)).encode(
            "utf-8", "surrogatepass"
        )
    else:
        key = one_of(
            draw, ["student.lr", "name", "data", "heads.label.labels", "a.b.c", "teacher", ".", "x", *STRINGS]
        )
        value = one_of(draw, [*YAML, "1", "[]", "null", "1e-4", *STRINGS])
        case["override"] = f"{key}={value}".encode("utf-8", "surrogatepass")
    return case


def use_recipe(folder: Path) -> None:
    """Load a recipe; what a run would write of it gives the same recipe."""
    from distill.recipe.load import dump_yaml, load_pretraining, load_recipe

    path, override = folder / "recipe.yaml", folder / "override"
    overrides = [override.read_bytes().decode("utf-8", "surrogatepass")] if override.exists() else []
    load = load_recipe if b"heads" in path.read_bytes() else load_pretraining
    recipe = load(path, overrides=overrides)
    written = folder / "written.yaml"
    written.write_text(dump_yaml(recipe.model_dump(mode="json", by_alias=True)), "utf-8")
    assert load(written, data_root=recipe.data.root) == recipe, "the recipe reads back as another"


# data


def damaged_rows(draw: Draw) -> list[list[str]]:
    """Rows of cells of which a few are changed."""
    rows = [list(row) for row in seeds.table()]
    for _ in range(draw(st.integers(0, 4))):
        row = rows[0] if draw(st.integers(0, 9)) == 0 else one_of(draw, rows)
        what = draw(st.integers(0, 25))
        if what == 0 and len(row) > 1:
            del row[draw(st.integers(0, len(row) - 1))]
        elif what == 1 or not row:
            row.insert(draw(st.integers(0, len(row))), one_of(draw, STRINGS))
        elif what < 5:  # a whole column
            place, text = draw(st.integers(0, 5)), one_of(draw, STRINGS)
            for each in rows[1:]:
                each[place : place + 1] = [text]
        else:
            row[draw(st.integers(0, len(row) - 1))] = one_of(draw, STRINGS)
    return rows


def encoded(draw: Draw, data: bytes) -> bytes:
    """A text file in another encoding, or with damaged bytes, or as it is."""
    what = draw(st.integers(0, 5))
    if what < 3:
        return change_bytes(draw, data)
    if what < 5:
        return data
    text = data.decode("utf-8", "replace")
    return text.encode(
        one_of(draw, ["utf-16", "utf-16-le", "utf-8-sig", "cp1252", "utf-32", "utf-7"]), "replace"
    )


@cases
def delimited(draw: Draw) -> Case:
    separator, name = one_of(
        draw, [(",", "csv")] * 4 + [(";", "csv"), ("|", "csv"), ("\t", "tsv"), ("\t", "txt")]
    )
    case = {f"data.{name}": encoded(draw, seeds.delimited(damaged_rows(draw), separator))}
    if draw(st.integers(0, 7)) == 0:
        case["encoding"] = one_of(draw, ENCODINGS).encode()
    return case


@cases
def lines(draw: Draw) -> Case:
    rows = [json.dumps(row) for row in seeds.objects()]
    for _ in range(draw(st.integers(0, 4))):
        n = draw(st.integers(0, len(rows) - 1))
        try:
            rows[n] = rendered(change_tree(draw, parsed(rows[n])))
        except (ValueError, RecursionError):
            continue  # was changed before
    return {"data.jsonl": encoded(draw, "\n".join(rows).encode("utf-8", "surrogatepass"))}


@cases
def documents(draw: Draw) -> Case:
    data = one_of(draw, _json_files())
    if draw(st.booleans()):
        data = rendered(change_tree(draw, parsed(data))).encode("utf-8", "surrogatepass")
    return {"data.json": encoded(draw, data)}


@cache
def _json_files() -> list[bytes]:
    return seeds.json_files()


@cases
def workbooks(draw: Draw) -> Case:
    data = _workbook()
    if draw(st.integers(0, 5)) == 0:
        return {"data.xlsx": change_bytes(draw, data)}
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream := io.BytesIO(), "w") as new:
        parts = old.namelist()
        chosen = "xl/worksheets/sheet1.xml" if draw(st.booleans()) else one_of(draw, parts)
        for part in parts:
            content = old.read(part)
            if part == chosen:
                change = change_bytes if draw(st.booleans()) else change_element
                content = change(draw, content, XML)
            new.writestr(part, content)
    return {"data.xlsx": stream.getvalue()}


def change_element(draw: Draw, data: bytes, pieces: list[bytes]) -> bytes:
    """XML with an element, an attribute or a text replaced."""
    found = list(
        re.finditer(rb'<c [^>]*>.*?</c>|<v>[^<]*</v>|<row [^>]*>|(?<=")[^"<>]*(?=")|(?<=>)[^<]+', data)
    )
    spot = one_of(draw, found) if found else re.search(b"", data)
    values = [
        *pieces,
        *(str(n).encode() for n in INTEGERS),
        *(text.encode("utf-8", "replace") for text in STRINGS),
    ]
    return data[: spot.start()] + one_of(draw, values) + data[spot.end() :]


@cases
def parquets(draw: Draw) -> Case:
    return {"data.parquet": change_bytes(draw, _parquet())}


@cache
def _parquet() -> bytes:
    return seeds.parquet()


@cases
def saved_sets(draw: Draw) -> Case:
    files = dict(_saved())
    name = one_of(draw, ["data-00000-of-00001.arrow"] * 4 + sorted(files))
    change = flip_bits if draw(st.booleans()) else change_bytes
    files[name] = change(draw, files[name])
    return {f"data.saved/{name}": data for name, data in files.items()}


@cache
def _saved() -> dict[str, bytes]:
    return seeds.saved()


@cache
def _workbook() -> bytes:
    return seeds.workbook()


def use_data(folder: Path) -> None:
    """Read all rows, check the data with a recipe, and propose one, which must be valid and fit the data."""
    from distill.data.prepare import prepare
    from distill.data.propose import propose
    from distill.data.sources import DataError, open_source
    from distill.recipe.data_section import RecipeError
    from distill.recipe.load import load_recipe, parse_recipe

    [path] = folder.glob("data.*")
    encoding = (folder / "encoding").read_text() if (folder / "encoding").exists() else None
    data = seeds.DATA | {"train": path.name, "root": str(folder), "max_bad_rows": 0.5, "encoding": encoding}
    raw = {"name": "toy", "heads": seeds.HEADS, "data": data}
    checked = parse_recipe(raw)
    source = open_source(path.name, folder, encoding=encoding)
    count = sum(1 for _ in source.rows([c for c in source.columns if c not in source.repeated]))
    assert count < 1_000_000, "more rows than the file has"
    problems: list[Exception] = []
    for number, make in enumerate((lambda: checked, lambda: _proposed(propose, load_recipe, path))):
        try:
            recipe = make()
        except (DataError, RecipeError) as error:
            problems.append(error)
            continue
        prepared = folder / f"prepared{number}"
        prepared.mkdir()
        try:
            counts = prepare(recipe, prepared, folder / f"report{number}.json")
            json.dumps(counts, allow_nan=False)
        except DataError as error:
            assert number == 0, f"the proposed recipe is refused: {error}"
            problems.append(error)
    if len(problems) == 2:
        raise problems[0]


def _proposed(propose: Any, load_recipe: Any, path: Path) -> Any:
    text = propose(path, root=path.parent)
    (path.parent / "recipe.yaml").write_text(text, "utf-8")
    try:
        return load_recipe(path.parent / "recipe.yaml")
    except Exception as error:
        raise AssertionError(f"the proposed recipe is invalid: {error}\n{text[:2_000]}") from error


def targets() -> list[Target]:
    """All targets."""
    from distill.data.sources import DataError
    from distill.recipe.data_section import RecipeError

    data = (DataError, RecipeError)
    return [
        Target("manifest", manifests, use_bundle, (BundleError,)),
        Target("tokenizer", tokenizers, use_bundle, (BundleError,)),
        Target("graph", graphs, use_bundle, (BundleError,)),
        Target("reads", reads, use_reads, (BundleError, DataError)),
        Target("recipe", recipes, use_recipe, (RecipeError,)),
        Target("csv", delimited, use_data, data),
        Target("jsonl", lines, use_data, data),
        Target("json", documents, use_data, data),
        Target("xlsx", workbooks, use_data, data),
        Target("parquet", parquets, use_data, data),
        Target("saved", saved_sets, use_data, data),
    ]
