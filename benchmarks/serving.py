"""How fast a bundle answers, beside what else could serve the same weights: same texts, threads, run.

    python benchmarks/serving.py RUN TEXTS.csv [--column text] [--rounds 5] [--threads 1]

RUN is a finished run. Its student, the first head alone, is also put into transformers' pipeline (torch) and
into that of optimum over onnxruntime, once as optimum exports and quantises it and once as the bundle's own
graph; "bare" is tokenizer and session without anything around them. Ours answers all heads. Prints markdown
tables of medians over the rounds; in each round every way has its turn.
Run it on an idle machine, and compare figures of one run only.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

TOKENS = 27
BATCHES = (8, 32, 128)
LATENCIES = 200  # calls a round
FIRST = "from export import Classifier; Classifier.load(sys.argv[1], threads=1)('where is it')"
STARTS = {"the imports alone": "", "and to the first label": FIRST}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("texts", type=Path, help="a csv file")
    parser.add_argument("--column", default="text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with options.texts.open(newline="", encoding="utf-8") as file:
        texts = [row[options.column] for row in csv.DictReader(file)]
    bundle = options.run / "bundle"
    _starts(bundle, options.rounds)
    ways = _ways(options.run, options.threads)
    classifier = ways["ours, int8"]
    text = min(texts, key=lambda text: abs(classifier.tokens([text])[0] - TOKENS))
    _one_text(ways, text, classifier.tokens([text])[0], options)
    _many_texts(ways, texts, options)
    _heads(options.run, text, texts, options)


def _table(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _one_text(ways: dict[str, Any], text: str, tokens: int, options: argparse.Namespace) -> None:
    seconds = _rounds(
        {name: lambda way=way: way(text) for name, way in ways.items()}, options.rounds, LATENCIES
    )
    ours = seconds["ours, int8"]
    rows = {name: [f"{1000 * s:.3f} ms", f"{s / ours:.2f}"] for name, s in seconds.items()}
    _table(f"One text of {tokens} tokens, threads: {options.threads}", ["p50", "times ours"], rows)


def _many_texts(ways: dict[str, Any], texts: list[str], options: argparse.Namespace) -> None:
    best = {}
    for name, way in ways.items():
        if name.startswith("bare"):
            continue
        tried = {
            size: _time(lambda way=way, size=size: way(texts[:1000], batch_size=size)) for size in BATCHES
        }
        best[name] = min(tried, key=lambda size: tried[size])
    calls = {name: lambda name=name: ways[name](texts, batch_size=best[name]) for name in best}
    seconds = _rounds(calls, options.rounds, 1)
    ours = seconds["ours, int8"]
    rows = {n: [f"{len(texts) / s:,.0f}", str(best[n]), f"{s / ours:.2f}"] for n, s in seconds.items()}
    title = f"{len(texts)} texts, threads: {options.threads}, each way at its best batch size"
    _table(title, ["texts a second", "batch", "times ours"], rows)


def _heads(run: Path, text: str, texts: list[str], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = {count: _of_heads(run, count, Path(folder, str(count)), options.threads) for count in (1, 32)}
        one = _rounds({n: lambda c=c: c(text) for n, c in made.items()}, options.rounds, LATENCIES)
        many = _rounds({n: lambda c=c: c(texts) for n, c in made.items()}, options.rounds, 1)
    rows = {f"{n} of 5 labels": [f"{1000 * one[n]:.3f} ms", f"{len(texts) / many[n]:,.0f}"] for n in made}
    rows["times"] = [f"{one[32] / one[1]:.3f}", f"{many[32] / many[1]:.3f}"]
    _table("Many heads, int8", ["one text, p50", "texts a second"], rows)


def _starts(bundle: Path, rounds: int) -> None:
    """A new process: seconds of importing numpy, onnxruntime and tokenizers, and to the first label."""
    rows: dict[str, list[str]] = {}
    found: dict[str, list[list[float]]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, code in STARTS.items():
            whole = (
                "import resource, sys, time; start = time.perf_counter(); "
                f"import numpy, onnxruntime, tokenizers; {code}\n"
                "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
            )
            done = subprocess.run(
                [sys.executable, "-c", whole, bundle], capture_output=True, text=True, check=True
            )
            found[name].append([float(value) for value in done.stdout.split()])
    for name, runs in found.items():
        seconds, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        rows[name] = [f"{seconds:.3f} s", f"{memory * 1024 / 1e6:.0f} MB"]
    _table("A new process", ["seconds", "memory at most"], rows)


def _rounds(calls: dict[Any, Callable[[], Any]], rounds: int, repeats: int) -> dict[Any, float]:
    """The median over the rounds of each call's median seconds within a round."""
    found: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            found[name].append(statistics.median(_time(call) for _ in range(repeats)))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _time(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _ways(run: Path, threads: int) -> dict[str, Any]:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, pipeline
    from transformers.utils import logging

    from export import Classifier

    logging.set_verbosity(logging.CRITICAL)  # of a class of model that the pipeline does not know
    torch.set_num_threads(threads)
    bundle = run / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(bundle, model_max_length=manifest["max_length"])
    settings = {"tokenizer": tokenizer, "truncation": True}
    student = _hugging_face(run)
    ways: dict[str, Any] = {
        "transformers pipeline, torch": pipeline(
            "text-classification", model=student, device="cpu", **settings
        )
    }
    choices = onnxruntime.SessionOptions()
    choices.intra_op_num_threads = threads
    sessions, folders = {}, _exported_by_optimum(student)
    for variant, file in manifest["variants"].items():
        sessions[variant] = onnxruntime.InferenceSession(
            bundle / file, choices, providers=["CPUExecutionProvider"]
        )
        folders[f"our graph, {variant}"] = folder = Path(tempfile.mkdtemp())
        _one_head(bundle, file, manifest["heads"][0], folder)
    for name, folder in folders.items():
        (file,) = folder.glob("*.onnx")
        model = ORTModelForSequenceClassification.from_pretrained(
            folder, file_name=file.name, session_options=choices, provider="CPUExecutionProvider"
        )
        ways[f"optimum pipeline, {name}"] = pipeline("text-classification", model=model, **settings)
    backend = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    backend.no_padding()
    backend.enable_truncation(manifest["max_length"])
    for variant, session in sessions.items():
        ways[f"bare tokenizer and session, {variant}"] = _bare(backend, session)
    for variant in manifest["variants"]:
        ways[f"ours, {variant}"] = Classifier.load(bundle, variant=variant, threads=threads)
    return ways


def _bare(tokenizer: Any, session: Any) -> Callable[[str], Any]:
    import numpy as np

    def call(text: str) -> Any:
        ids = np.array([tokenizer.encode(text).ids])
        return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    return call


def _hugging_face(run: Path) -> Any:
    """The run's student, its first head alone, as transformers' pipeline takes a model."""
    import torch
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    from distill.models.base import load_classifier

    network, _ = load_classifier(run / "stages" / "fit_student")
    head = network.heads[0]

    class Student(PreTrainedModel):  # type: ignore[misc]
        config_class = type(network.config)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            logits = self.network({"input_ids": input_ids, "attention_mask": attention_mask})
            return SequenceClassifierOutput(logits=self.network.split(logits)[head.name])

    config = network.config
    config.id2label = dict(enumerate(head.labels))
    config.problem_type = f"{head.kind}_classification"
    return Student(config).eval().requires_grad_(False).to(torch.float32)


def _exported_by_optimum(student: Any) -> dict[str, Path]:
    """Folders of the student as optimum exports it, and as it quantises that for a CPU like this one."""
    import warnings

    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import BertOnnxConfig
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    made, quantized = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of shapes that are constant here
        export(student, BertOnnxConfig(student.config, task="text-classification"), made / "model.onnx")
    student.config.save_pretrained(made)
    scheme = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    ORTQuantizer.from_pretrained(made).quantize(scheme, save_dir=quantized)
    return {"its own export, fp32": made, "its own export and int8": quantized}


def _one_head(bundle: Path, file: str, head: dict[str, Any], folder: Path) -> None:
    """A folder that optimum reads: the graph with the head's output alone, named logits."""
    import onnx

    model = onnx.load(bundle / file)
    for node in model.graph.node:
        node.output[:] = ["logits" if name == head["output"] else name for name in node.output]
    kept = [output for output in model.graph.output if output.name == head["output"]]
    kept[0].name = "logits"
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, folder / "model.onnx")
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(i): label for i, label in enumerate(head["labels"])}
    config["label2id"] = {label: i for i, label in enumerate(head["labels"])}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _of_heads(run: Path, count: int, folder: Path, threads: int) -> Any:
    """A bundle of the run's encoder with so many heads of five labels, loaded."""
    from distill.heads import Head
    from distill.models.base import load_classifier
    from distill.models.classifier import MultiHeadClassifier
    from export import Classifier
    from export.bundle import manifest as manifests
    from export.bundle.files import read_bundle, write_bundle
    from export.graph.quantize import quantize_int8
    from export.graph.to_onnx import to_onnx

    trained, _ = load_classifier(run / "stages" / "fit_student")
    manifest = read_bundle(run / "bundle")
    heads = tuple(Head(f"h{i}", "single_label", tuple("abcde")) for i in range(count))
    network = MultiHeadClassifier(trained.encoder, heads, pooling=trained.pooling).eval()
    folder.mkdir()
    outputs = [f"logits_{head.name}" for head in heads] if count > 1 else ["logits"]
    to_onnx(network, outputs, folder / "fp32.onnx", positions=manifest.max_length)
    quantize_int8(folder / "fp32.onnx", folder / "int8.onnx")
    served = tuple(
        manifests.Head(h.name, h.kind, h.labels, output) for h, output in zip(heads, outputs, strict=True)
    )
    made = manifests.Manifest(
        "heads", served, manifest.max_length, manifest.pad_token_id, {"int8": manifests.INT8}, "int8"
    )
    tokenizer = run / "bundle" / manifests.TOKENIZER
    write_bundle(
        folder / "bundle", made, {manifests.INT8: folder / "int8.onnx", manifests.TOKENIZER: tokenizer}
    )
    return Classifier.load(folder / "bundle", threads=threads)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    main()
