"""The commands that take a bundle: predict, serve, export, evaluate, bench, doctor."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.terminal import Result, print_line, print_result

if TYPE_CHECKING:
    from export.runtime.classifier import Classifier

SHOWN = 8  # unknown labels that `evaluate` names
CLASSES = 20  # labels of a head that `evaluate` shows
CHUNK = 1024  # texts that `predict` reads before it prints their answers


Command = Callable[[argparse.Namespace], Any]
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]


class UsageError(Exception):
    """The arguments of a command are invalid."""

    exit_code = 2


@contextmanager
def _usage_errors(prefix: str = "") -> Iterator[None]:
    """Raise a ValueError, which names an invalid argument, as UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{prefix}{error}") from None


def _classifier(options: argparse.Namespace) -> Classifier:
    from export.runtime.classifier import Classifier

    with _usage_errors():
        return Classifier.load(options.bundle, variant=options.variant, threads=options.threads)


def predict(options: argparse.Namespace) -> None:
    """Print one JSON object per text."""
    classifier = _classifier(options)
    if options.labels is not None:
        with _usage_errors():
            names = options.heads or [None]
            if len(names) > 1:
                raise ValueError(f"labels: are of one head, expected --heads to name one, got {len(names)}")
            classifier = classifier.with_labels(_labels(options.labels), names[0])
    thresholds = _thresholds(options.threshold)
    texts, done = _texts(classifier, options.text, options.text_column), 0
    while chunk := list(itertools.islice(texts, CHUNK)):
        with _usage_errors(f"after {done} texts: " if done else ""):
            answers = classifier(
                chunk,
                heads=options.heads,
                top_k=options.top_k,
                thresholds=thresholds,
                abstain=not options.no_abstain,
            )
        for text, answer in zip(chunk, answers, strict=True):
            print_line(json.dumps({"text": text, **answer}, ensure_ascii=False))
        done += len(chunk)


def _labels(given: str) -> list[str] | dict[str, str | None]:
    """Labels separated by commas, or those in a .json file: a list, or an object of descriptions."""
    if not given.endswith(".json"):
        return [label.strip() for label in given.split(",")]
    try:
        labels = json.loads(Path(given).read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--labels: {given}: cannot be read: {error.strerror} (name a file)") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--labels: {given}: must be JSON in UTF-8: {error}") from None
    if not isinstance(labels, (list, dict)):
        raise UsageError(f"--labels: {given}: must be a list of labels or an object of descriptions")
    return labels


def _thresholds(given: Sequence[str] | None) -> dict[str, Any] | None:
    """The thresholds of `--threshold HEAD=NUMBER` and `--threshold HEAD.LABEL=NUMBER`."""
    found: dict[str, Any] = {}
    for option in given or ():
        name, equals, number = option.rpartition("=")
        head, dot, label = name.partition(".")
        try:
            value = float(number)
        except ValueError:
            equals = ""
        if not (head and equals):
            raise UsageError(f"--threshold: expected HEAD=NUMBER or HEAD.LABEL=NUMBER, got {option!r}")
        of_head = found.setdefault(head, {} if dot else None)
        if dot and isinstance(of_head, dict) and label not in of_head:
            of_head[label] = value
        elif not dot and of_head is None:
            found[head] = value
        else:
            raise UsageError(f"--threshold: {name} has two thresholds (keep one)")
    return found or None


def _texts(classifier: Classifier, texts: list[str], columns: list[str] | None) -> Iterator[str]:
    """The texts that `predict` classifies: arguments, the rows of a file, or the lines of stdin."""
    if columns is not None:
        if len(texts) != 1:
            raise UsageError(f"--text-column: expected one file, got {len(texts)} (give the file first)")
        return _file_texts(classifier, texts[0], columns)
    if len(texts) == 1 and os.path.isfile(texts[0]):  # noqa: PTH113  Path raises for long texts
        todo = f"did you mean --text-column NAME, for its rows, or `< {texts[0]}`, for its lines?"
        raise UsageError(f"{texts[0]}: is a file, expected a text ({todo})")
    return iter(texts or _stdin_lines())


def _file_texts(classifier: Classifier, file: str, columns: Sequence[str]) -> Iterator[str]:
    """The texts of a file in order, streamed, read and joined as in training; a missing text is empty.

    Raises:
        DataError: The file cannot be read, has no such column, or has a text that is not one.
    """
    from distill.data.labels import InvalidCell, joined_text
    from distill.data.sources import DataError, encoding_hint, listed, open_source
    from distill.evaluation.evaluate_bundle import file_encoding
    from distill.recipe.near import near

    source = open_source(file, Path.cwd(), text=columns, encoding=file_encoding(classifier))
    for column in columns:
        if not source.has(column):
            known = f"{near(column, source.columns)}, {listed(source.columns)}"
            raise UsageError(f"{file}: no column {column!r}{known} (name it with --text-column)")
    for row in source.rows(columns):
        try:
            yield joined_text(row.cells)
        except InvalidCell as error:
            if error.kind != "empty text":
                found = encoding_hint(file, Path.cwd())
                todo = f" (it is probably {found}: convert it to UTF-8)" if found else ""
                raise DataError(f"{row.file}:{row.place}: {error.kind}, expected a text{todo}") from None
            yield ""


def _stdin_lines() -> Iterator[str]:
    if sys.stdin is None:
        raise UsageError("stdin: is closed, expected lines of text (or give texts as arguments)")
    # bytes that are not UTF-8 become surrogates, which valid text cannot contain
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")  # type: ignore[union-attr]
    for number, line in enumerate(sys.stdin, 1):
        try:
            line.encode()
        except UnicodeEncodeError:
            raise UsageError(f"stdin: line {number} is not UTF-8 (convert the input to UTF-8)") from None
        yield line.rstrip("\r\n")


def evaluate(options: argparse.Namespace) -> Result:
    """Print the metrics of a bundle on labelled texts, and those of the labels that it answers worst."""
    from distill.evaluation.evaluate_bundle import evaluate_bundle
    from distill.reports.text import one_line

    if options.report:
        _check_page(options.report)
    classifier = _classifier(options)
    with _usage_errors():
        result = evaluate_bundle(classifier, options.data, text=options.text, heads=options.heads)
    lines = []
    for head, quality in result["heads"].items():
        analysis, count = result["analysis"][head], f"{result['texts'][head]:,} of {result['rows']:,} texts"
        values = {name: "-" if x is None else f"{x:.4f}" for name, x in quality.items()}
        if interval := analysis["intervals"][result["variant"]]:
            low, high = interval
            values[analysis["metric"]] += f" (95 % {low:.4f} to {high:.4f})"
        metrics = ", ".join(f"{name} {value}" for name, value in values.items())
        lines.append(f"{one_line(head)} ({count} labelled): {metrics}")
        if (some := analysis["answered"]) and some["answered"]:
            lines.append(
                f"{one_line(head)}: answers {some['answered']:,} of {some['texts']:,} texts "
                f"({some['coverage']:.1%}), accuracy {some['accuracy']:.4f} on these"
            )
        lines += _classes(analysis["classes"]) if result["texts"][head] else []
        if unknown := result["unknown_labels"].get(head, {}):
            shown = [f"{label!r} ({cells})" for label, cells in unknown.items()][:SHOWN]
            more = [f"{len(unknown) - SHOWN} more"] if len(unknown) > SHOWN else []
            lines.append(
                f"{one_line(head)}: unlabelled, as the bundle does not know: {', '.join(shown + more)}"
            )
    if options.report:
        from distill.reports.evaluate_page import write_evaluate_page

        written = write_evaluate_page(Path(options.report), classifier.manifest.name, options.data, result)
        lines.append(f"{written}: written")
        result = {**result, "report": str(written)}
    return Result("\n".join(lines), result)


def _check_page(path: str) -> None:
    """Refuse a page that cannot be written, before anything is measured.

    Raises:
        UsageError: The path is that of something else than a page, or its folder is missing.
    """
    from distill.reports import charts  # noqa: F401  whose package may be missing

    target = Path(path)
    if target.suffix != ".html" or target.is_dir():
        what = "is a folder" if target.is_dir() else "is no page"
        raise UsageError(f"--report: {path}: {what}, expected the path of a .html file (choose another)")
    if not target.resolve().parent.is_dir():
        raise UsageError(f"--report: {path}: there is no folder {target.parent} (create it)")


def _classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the labels of a head, lowest F1 first."""
    from distill.reports.text import one_line

    shown = [name for name in ("precision", "recall", "f1", "average_precision") if name in classes[0]]
    rows: list[tuple[str, ...]] = [
        ("label", *(name.replace("_", " ") for name in shown), "texts", "predicted")
    ]
    for row in classes[:CLASSES]:
        values = (row[name] for name in shown)
        shares = ("-" if value is None else f"{value:.4f}" for value in values)
        rows.append((one_line(row["label"]), *shares, f"{row['support']:,}", f"{row['predicted']:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *others in rows:
        cells = [label.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        lines.append(f"  {'  '.join(cells)}")
    return [*lines, *([f"  {len(classes) - CLASSES} more"] if len(classes) > CLASSES else [])]


def doctor(options: argparse.Namespace) -> Result:
    """Compare the logits that this machine computes with those stored in a bundle."""
    from export.graph.gates import GateError
    from export.runtime.doctor import doctor as replay

    found = replay(options.bundle)
    lines = [f"{found['cpu']['model']}, {' '.join(found['cpu']['flags'])}"]
    for name, variant in found["variants"].items():
        largest, mean = variant["allowed"]
        lines.append(
            f"{name}: {'correct' if variant['right'] else 'WRONG'}: largest difference of a logit "
            f"{variant['max_difference']:.1e} (allowed {largest:.1e}), mean difference "
            f"{variant['mean_difference']:.1e} (allowed {mean:.1e})"
        )
    result = Result("\n".join(lines), found)
    if wrong := [name for name, variant in found["variants"].items() if not variant["right"]]:
        print_result(result, as_json=options.json)
        raise GateError(
            f"{options.bundle}: this machine computes {', '.join(wrong)} wrong (use another variant)"
        )
    return result


def export(options: argparse.Namespace) -> Result:
    """Convert a bundle for another runtime."""
    from export.targets.registry import export_bundle

    chosen = {"variant": options.variant, "library": options.transformers_js}
    written = export_bundle(options.bundle, options.target, options.out, **chosen)
    return Result(str(written["out"]), written)


def bench(options: argparse.Namespace) -> Result:
    """Measure the latency and throughput of a bundle on this machine."""
    from export.runtime.benchmark import bench as measure

    classifier = _classifier(options)
    columns = options.text_column or ["text"]
    texts = list(_file_texts(classifier, options.texts, columns)) if options.texts else SAMPLE
    with _usage_errors():
        result = measure(classifier, texts, heads=options.heads)
    latency = result["latency_ms"]
    text = (
        f"{result['variant']}: {latency['tokens']} tokens take {latency['p50']:.3f} ms (median), "
        f"{latency['p99']:.3f} ms (p99); {result['throughput']:,.0f} texts per second, "
        f"threads: {result['threads']}"
    )
    return Result(text, result)


def serve(options: argparse.Namespace) -> Result:
    """Serve bundles over HTTP until a signal."""
    from export.serving.server import serve as run_server
    from export.serving.settings import Settings

    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = {name: value for name, value in given.items() if value is not None}
    served = run_server(Settings(**{**settings, "bundles": tuple(options.bundles)}))
    return Result(json.dumps(served, ensure_ascii=False), served)


def _names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(map(str.strip, text.split(",")))


SERVE_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "host": (str, "address to bind (127.0.0.1)"),
    "port": (int, "port to bind; 0 picks a free one (8000)"),
    "variant": (str, "int8 or fp32 (the default of the bundle)"),
    "threads": (int, "batches computed in parallel within one call (1)"),
    "max-batch": (int, "texts in one call of the classifier (64)"),
    "max-wait-ms": (float, "milliseconds that an idle classifier waits for a batch to fill (0)"),
    "queue": (int, "texts that may wait; further requests get status 503 (512)"),
    "timeout-s": (float, "seconds until a request gets status 504 (10)"),
    "max-body": (int, "bytes of a request body; larger ones get status 413 (1048576)"),
    "max-text": (int, "characters of a text; longer ones get status 422 (20000)"),
    "max-connections": (int, "open connections; further ones get status 503 (1024)"),
    "allowed-hosts": (_names, "allowed values of the Host header, separated by commas (any)"),
    "drain-s": (float, "seconds that a stopping server still responds, with status 503 (1)"),
    "watch-s": (float, "seconds between checks for changed bundles; 0 disables them (1)"),
}


SAMPLE = [
    "where is my parcel?",
    "Hello, I ordered a lamp two weeks ago and the tracking page has not moved since Monday, could you look?",
] * 500


COMMANDS: dict[str, tuple[Command, str, str]] = {
    "predict": (predict, "classify texts, a file or stdin", 'BUNDLE "where is my parcel?"'),
    "serve": (serve, "serve bundles over HTTP (/predict, Open Inference Protocol)", "BUNDLE --port 8000"),
    "export": (export, "convert a bundle for another runtime", "BUNDLE --target triton --out models"),
    "evaluate": (evaluate, "measure a bundle on labelled texts", "BUNDLE test.csv --variant fp32"),
    "bench": (bench, "measure the latency and throughput of a bundle", "BUNDLE --threads 2"),
    "doctor": (doctor, "check that this machine computes a bundle correctly", "BUNDLE"),
}


def add_bundle_commands(add: Add) -> None:
    """Add the commands of this module with `add(name, command, about, arguments of the example)`."""
    parsers = {
        name: add(name, command, about, example.replace("BUNDLE", "runs/demo/bundle"))
        for name, (command, about, example) in COMMANDS.items()
    }
    for name, parser in parsers.items():
        if name == "serve":
            parser.add_argument("bundles", nargs="+", metavar="bundle", help="folder of a bundle")
        else:
            parser.add_argument("bundle", help="folder of a bundle")
    for name, (kind, about) in SERVE_OPTIONS.items():
        parsers["serve"].add_argument(f"--{name}", type=kind, help=about)
    parsers["serve"].add_argument("--log-texts", action="store_true", help="include the texts in the log")
    targets = "transformers-js, triton, tei or text-in-graph"
    parsers["export"].add_argument("--target", required=True, help=targets)
    parsers["export"].add_argument("--out", metavar="DIR", help="output folder (BUNDLE-TARGET)")
    about = "npm package to copy for offline use (node_modules/@huggingface/transformers)"
    parsers["export"].add_argument("--transformers-js", metavar="DIR", help=about)
    about = "texts, or one file with --text-column (the lines of stdin)"
    parsers["predict"].add_argument("text", nargs="*", default=[], help=about)
    again = "column of the texts; give it twice to join two columns"
    column: dict[str, Any] = {"metavar": "NAME", "action": "append"}
    about = f"classify the rows of a file: {again}"
    parsers["predict"].add_argument("--text-column", help=about, **column)
    about = "labels to choose from, for a packed bundle: separated by commas, or a .json file"
    parsers["predict"].add_argument("--labels", metavar="LABEL,LABEL", help=about)
    parsers["predict"].add_argument("--top-k", type=int, metavar="K", help="best K labels of each head")
    about = "probability from which labels apply, or from which a single_label head answers: HEAD=NUMBER or "
    about += "HEAD.LABEL=NUMBER; may be repeated"
    parsers["predict"].add_argument("--threshold", metavar="HEAD=NUMBER", action="append", help=about)
    about = "answer every text, also where a head would abstain (label null)"
    parsers["predict"].add_argument("--no-abstain", action="store_true", help=about)
    parsers["evaluate"].add_argument("data", help="labelled file with a column for each head")
    about = f"{again} (those of the bundle's recipe)"
    parsers["evaluate"].add_argument("--text", "--text-column", help=about, **column)
    about = "also write a page with charts, and the texts that are answered wrong"
    parsers["evaluate"].add_argument("--report", metavar="PAGE.html", help=about)
    about = "texts to measure: lines of a .txt file, or rows of another file"
    parsers["bench"].add_argument("--texts", metavar="FILE", help=about)
    parsers["bench"].add_argument("--text-column", help=f"{again} (text)", **column)
    for name in ("export", "predict", "evaluate", "bench"):
        parsers[name].add_argument("--variant", help="int8 or fp32 (the default of the bundle)")
    about = "only these heads, separated by commas"
    for name in ("predict", "evaluate", "bench"):
        parsers[name].add_argument("--threads", type=int, help="batches computed in parallel (1)")
        parsers[name].add_argument(
            "--heads", type=lambda names: names.split(","), metavar="HEAD,HEAD", help=about
        )
