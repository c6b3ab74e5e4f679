"""The metrics of a bundle on labelled data. Needs no extra for text files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from distill.data.rows import RowIssues, RowReader, encoded
from distill.data.sources import DataError, Source, listed, open_source, quoted
from distill.evaluation.analysis import Answers, analyse, answered
from distill.evaluation.metrics import labelled, without_nan
from distill.heads import Head, Kind
from distill.recipe.encoding import is_encoding
from distill.recipe.near import near
from export.bundle import manifest as manifests
from export.runtime.classifier import Classifier

if TYPE_CHECKING:
    from distill.recipe.data_section import HeadRecipe


def evaluate_bundle(
    classifier: Classifier,
    data: str,
    *,
    text: str | Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The metrics of the heads on a labelled file.

    The labels are read as the run that made the bundle read them. A text is unlabelled for a head if its cell
    is empty, or has a label that the bundle does not know. Of the labels of a multi_label head, those that
    the run left out do not count.

    Args:
        classifier: The bundle.
        data: A labelled source as in a recipe, relative to the current folder.
        text: Column of the texts, or columns to join; by default those of the run.
        heads: Heads to measure, whose columns the data must have; by default all.

    Returns:
        `{"rows": n, "variant": name, "dropped": {KIND: n}, "texts": {HEAD: n}, "unknown_labels": {HEAD:
        {LABEL: n}}, "heads": {HEAD: {METRIC: x}}, "analysis": {HEAD: {...}}}`. `texts` counts the labelled
        texts, on which the metrics are, of a head that answers every text. `analysis` is what
        `analysis.analyse` finds, the `intervals` of the first metric, `{VARIANT: (low, high)}`, and for a
        head that abstains what `analysis.answered` says.

    Raises:
        DataError: The data cannot be read, or has no such column or no labelled text.
        ValueError: The bundle has no such head.
        BundleError: The manifest does not say how labels are read.
    """
    for name in heads or ():
        classifier.labels(name)  # raises ValueError for an unknown head
    served = [head for head in classifier.manifest.heads if heads is None or head.name in heads]
    reads = _reads(classifier)
    layouts = {head.name: _layout(head, reads) for head in served}
    columns = _text_columns(reads if text is None else {"text": [text] if isinstance(text, str) else [*text]})
    encoding = file_encoding(classifier)
    reader = RowReader(layouts, columns, strict=False)
    source = open_source(data, Path.cwd(), text=columns, role="test", encoding=encoding)
    _check_columns(source, reader, columns)
    dropped = RowIssues()
    texts = reader.name_labels(reader.read(source, dropped))
    dropped.log("dropped")
    measured = [Head(head.name, cast("Kind", head.kind), head.labels) for head in served]
    rows = [encoded(item, measured) for item in texts]
    if not any(labels is not None for item in texts for labels in item.labels):
        others = {label for labels in reader.labels.values() for label in labels.unlisted()}
        has = f"its labels are {', '.join(sorted(map(repr, others)))[:200]}" if others else "it has none"
        raise DataError(f"{source.name}: no row has a label that the bundle knows, {has}")
    logits = classifier.logits([item.text for item in texts], [head.name for head in served])
    metrics, counts, analyses = {}, {}, {}
    for head, fitted in zip(measured, served, strict=True):
        labels = np.array([row[head.column] for row in rows])
        counts[head.name] = int(labelled(labels, head).sum())
        answers = Answers(head, logits[head.name], fitted.temperature, fitted.thresholds)
        metrics[head.name] = without_nan(answers.quality(labels))
        analyses[head.name] = {
            **analyse(answers, labels, [item.text for item in texts]),
            "intervals": {classifier.variant: answers.interval(labels)},
            "answered": fitted.abstain
            and answered(head, logits[head.name], labels, fitted.temperature, fitted.abstain),
        }
    return {
        "rows": len(texts),
        "variant": classifier.variant,
        "dropped": dict(dropped.counts()),
        "texts": counts,
        "unknown_labels": {
            name: unknown for name, labels in reader.labels.items() if (unknown := labels.unlisted())
        },
        "heads": metrics,
        "analysis": analyses,
    }


def _reads(classifier: Classifier) -> Mapping[str, Any]:
    """What the manifest says of how the run read labelled files."""
    reads = classifier.manifest.details.get("reads", {})
    manifests.require(isinstance(reads, Mapping), manifests.MANIFEST, f"reads: is invalid {manifests.AGAIN}")
    return cast("Mapping[str, Any]", reads)


def _layout(head: manifests.Head, reads: Mapping[str, Any]) -> HeadRecipe:
    """How the labels of a head are written, as the manifest says; by default in a column of its name."""
    values: dict[str, Any] = {
        "column": head.name,
        "columns": None,
        "separator": "|",
        "none": None,
        "labels": None,
    }
    heads = reads.get("heads", {})
    given = heads.get(head.name, {}) if isinstance(heads, Mapping) else None
    if valid := isinstance(given, Mapping):
        values |= given
        columns, separator = values["columns"], values["separator"]
        names = [values["column"]] if columns is None else columns
        valid = isinstance(names, list) and names != [] and all(isinstance(name, str) for name in names)
        valid = valid and isinstance(separator, str) and separator != ""
        valid = valid and isinstance(values["none"], str | None)
        valid = valid and isinstance(values["labels"], list | None)
        valid = valid and all(isinstance(label, str) for label in values["labels"] or ())
    manifests.require(valid, manifests.MANIFEST, f"reads: head {head.name!r} is invalid {manifests.AGAIN}")
    others = values["labels"] if head.kind == "multi_label" else None
    values |= {"kind": head.kind, "labels": (*(others or ()), *head.labels)}
    return cast("HeadRecipe", SimpleNamespace(**values))


def _text_columns(reads: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns whose texts the run joined, as the manifest says."""
    text = reads.get("text", "text")
    names = text if isinstance(text, list) else [text]
    valid = bool(names) and all(isinstance(name, str) for name in names)
    manifests.require(valid, manifests.MANIFEST, f"reads: text is invalid {manifests.AGAIN}")
    return tuple(names)


def file_encoding(classifier: Classifier) -> str | None:
    """The encoding of files that are not UTF-8, as the manifest says.

    Raises:
        BundleError: There is no such encoding.
    """
    name = _reads(classifier).get("encoding")
    valid = name is None or is_encoding(name)
    manifests.require(valid, manifests.MANIFEST, f"reads: encoding is invalid {manifests.AGAIN}")
    return cast("str | None", name)


def _check_columns(source: Source, reader: RowReader, texts: Sequence[str]) -> None:
    """Raise DataError where a column is missing; the message names the options that choose others."""
    known = listed(source.columns)
    wanted = [("the texts", text, "name it with --text") for text in texts]
    todo = "rename it, or choose the heads to measure with --heads"
    wanted += [(f"head {head!r}", column, todo) for head in reader.labels for column in reader.columns(head)]
    free = {*source.columns} - {column for _, column, _ in wanted}
    if lines := [
        f"{source.name}: no column {quoted(column)}{near(column, free)} for {use}, {known} ({todo})"
        for use, column, todo in wanted
        if not source.has(column)
    ]:
        raise DataError("\n".join(lines))
