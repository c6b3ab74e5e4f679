"""The commands that take a bundle: predict, serve, export, evaluate, bench, doctor."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Add = Callable[[str, Callable[[argparse.Namespace], Any], str], argparse.ArgumentParser]


class UsageError(Exception):
    """A command that cannot be carried out as given."""

    exit_code = 2


def _classifier(options: argparse.Namespace) -> Any:
    from export.runtime.classifier import Classifier

    try:
        return Classifier.load(options.bundle, variant=options.variant, threads=options.threads)
    except ValueError as error:
        raise UsageError(str(error)) from None


def predict(options: argparse.Namespace) -> None:
    """Print a line of JSON for each text."""
    import itertools

    classifier = _classifier(options)
    texts = iter(options.text)
    if not options.text:
        if sys.stdin is None:
            raise UsageError("stdin: is closed (give texts, or lines on stdin)")
        # undecodable bytes become surrogates, which no text holds
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
        texts = (_decoded(number, line) for number, line in enumerate(sys.stdin, 1))
    done = 0
    while chunk := list(itertools.islice(texts, 1024)):
        try:
            answers = classifier(chunk, heads=options.heads, top_k=options.top_k)
        except ValueError as error:
            raise UsageError(f"after {done} texts: {error}" if done else str(error)) from None
        for text, answer in zip(chunk, answers, strict=True):
            print(json.dumps({"text": text, **answer}, ensure_ascii=False))
        done += len(chunk)


def _decoded(number: int, line: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError:
        raise UsageError(f"stdin: line {number} is not UTF-8 (convert it first)") from None
    return line.rstrip("\r\n")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Measure on labelled texts."""
    from distill.evaluation.evaluate_bundle import evaluate_bundle

    classifier = _classifier(options)
    try:
        found = evaluate_bundle(classifier, options.data, text=options.text, heads=options.heads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for head, quality in found["heads"].items():
        told = ", ".join(f"{name} {'-' if x is None else f'{x:.4f}'}" for name, x in quality.items())
        print(f"{head}: {told}", file=sys.stderr)
    return found


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """Say whether this machine computes the bundle right."""
    from export.graph.gates import GateError
    from export.runtime.doctor import doctor as replay

    found = replay(options.bundle)
    print(f"{found['cpu']['model']}, {' '.join(found['cpu']['flags'])}", file=sys.stderr)
    for name, variant in found["variants"].items():
        said = "computed right" if variant["right"] else "computed WRONG"
        most, mean = variant["allowed"]
        far = (
            f"differs by {variant['max_difference']:.1e} at most, {variant['mean_difference']:.1e} on average"
        )
        far += f" (allowed are {most:.1e} and {mean:.1e})"
        print(f"{name}: {said}: {far}", file=sys.stderr)
    if wrong := [name for name, variant in found["variants"].items() if not variant["right"]]:
        print(json.dumps(found, ensure_ascii=False), flush=True)
        raise GateError(
            f"{options.bundle}: this machine computes {', '.join(wrong)} wrong (use another variant)"
        )
    return found


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write it as another reader wants it."""
    from export.targets.registry import export_bundle

    chosen = {"variant": options.variant, "library": options.transformers_js}
    return export_bundle(options.bundle, options.target, options.out, **chosen)


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Time it on this machine."""
    from export.runtime.benchmark import bench as measure

    classifier = _classifier(options)
    try:
        texts = Path(options.texts).read_text(encoding="utf-8").splitlines() if options.texts else SAMPLE
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"{options.texts}: cannot be read: {reason} (give UTF-8, a text a line)") from None
    try:
        found = measure(classifier, texts, heads=options.heads)
    except ValueError as error:
        raise UsageError(str(error)) from None
    one = found["latency_ms"]
    told = f"one text of {one['tokens']} tokens {one['p50']:.3f} ms, p99 {one['p99']:.3f} ms"
    many = f"{found['throughput']:,.0f} texts a second, threads: {found['threads']}"
    print(f"{found['variant']}: {told}; {many}", file=sys.stderr)
    return found


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Answer over HTTP until a signal."""
    from export.serving.server import serve as answer
    from export.serving.settings import Settings

    given = {name: value for name, value in vars(options).items() if name != "command" and value is not None}
    return answer(Settings(**{**given, "bundles": tuple(options.bundles)}))


SERVE_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "host": (str, "address to listen at (127.0.0.1)"),
    "port": (int, "port; 0 takes a free one (8000)"),
    "variant": (str, "int8 or fp32"),
    "threads": (int, "batches of one call that are computed at once (1)"),
    "max-batch": (int, "texts that one call takes (64)"),
    "max-wait-ms": (float, "how long an idle classifier waits for a batch to fill (0)"),
    "queue": (int, "texts that may wait; more get 503 (512)"),
    "timeout-s": (float, "for a request; then 504 (10)"),
    "max-body": (int, "bytes of a request; more get 413 (1048576)"),
    "max-text": (int, "characters of a text; more get 422 (20000)"),
    "drain-s": (float, "how long a stopping server still answers, new texts with 503 (1)"),
    "watch-s": (float, "how often to look for a new bundle in the folders; 0 is never (1)"),
}


SAMPLE = [
    "where is my parcel?",
    "Hello, I ordered a lamp two weeks ago and the tracking page has not moved since Monday, could you look?",
] * 500


def add_bundle_commands(add: Add) -> None:
    """Add them to a parser; `add` takes a command's name, function and what it is about."""
    asked = add("predict", predict, "classify texts, or the lines of stdin")
    server = add("serve", serve, "answer over HTTP: /predict, the open inference protocol v2, /docs")
    server.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folder of a bundle")
    for name, (kind, about) in SERVE_OPTIONS.items():
        server.add_argument(f"--{name}", type=kind, help=about)
    server.add_argument("--log-texts", action="store_true", help="log the texts too")

    written = add("export", export, "write a bundle as another reader wants it")
    written.add_argument("bundle", help="folder of a bundle")
    written.add_argument("--target", required=True, help="transformers-js, triton, tei or text-in-graph")
    written.add_argument("--out", metavar="DIR", help="folder to write (BUNDLE-TARGET)")
    written.add_argument("--variant", help="int8 or fp32")
    about = "the npm package's folder (node_modules/@huggingface/transformers): the page then works offline"
    written.add_argument("--transformers-js", metavar="DIR", help=about)
    judged = add("evaluate", evaluate, "measure a bundle on labelled texts")
    timed = add("bench", bench, "time a bundle on this machine")
    replayed = add("doctor", doctor, "say whether this machine computes a bundle right")
    for sub in (asked, judged, timed, replayed):
        sub.add_argument("bundle", help="folder of a bundle")
    for sub in (asked, judged, timed):
        sub.add_argument("--variant", help="int8 or fp32")
        sub.add_argument("--threads", type=int, help="batches of one call that are computed at once")
    asked.add_argument("text", nargs="*", help="texts; without any, lines of stdin")
    asked.add_argument("--top-k", type=int, metavar="K", help="the K best labels of each head")
    judged.add_argument("data", help="a labelled file with a column for each head")
    judged.add_argument("--text", help="column of the text (that of the recipe)")
    timed.add_argument("--texts", metavar="FILE", help="texts to time, one a line")
    for sub in (asked, judged, timed):
        about = "only these heads, parted by commas"
        sub.add_argument("--heads", type=lambda names: names.split(","), metavar="HEAD,HEAD", help=about)
