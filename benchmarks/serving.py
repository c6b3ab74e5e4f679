"""Latency and throughput of a bundle, compared with other ways to serve the same student.

    python benchmarks/serving.py RUN TEXTS.csv [--column text] [--rounds 5] [--threads 1]

RUN is a complete run. The transformers pipeline (torch) and the optimum pipeline (onnxruntime) also serve the
first head of its student. The latter uses optimum's own export and quantization, and the bundle's own graph.
"bare" is the tokenizer and the onnxruntime session without further code. The bundle computes all heads.
Prints Markdown tables of medians over the rounds. Each round measures every method once.
Run it on an idle machine and compare only results of the same run.
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
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.models.classifier import MultiHeadClassifier

TOKENS = 27
BATCHES = (8, 32, 128)
LATENCIES = 200  # calls per round
FIRST = "from export import Classifier; Classifier.load(sys.argv[1], threads=1)('where is it')"
STARTUP = {"imports only": "", "up to the first label": FIRST}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("texts", type=Path, help="a CSV file")
    parser.add_argument("--column", default="text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with options.texts.open(newline="", encoding="utf-8") as file:
        texts = [row[options.column] for row in csv.DictReader(file)]
    bundle = options.run / "bundle"
    _startup(bundle, options.rounds)
    methods = _methods(options.run, options.threads)
    classifier = methods["ours, int8"]
    text = min(texts, key=lambda text: abs(classifier.tokens([text])[0] - TOKENS))
    _one_text(methods, text, classifier.tokens([text])[0], options)
    _many_texts(methods, texts, options)
    _heads(options.run, text, texts, options)


def _table(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _one_text(methods: dict[str, Any], text: str, tokens: int, options: argparse.Namespace) -> None:
    seconds = _rounds(
        {name: partial(method, text) for name, method in methods.items()},
        options.rounds,
        LATENCIES,
    )
    ours = seconds["ours, int8"]
    rows = {name: [f"{1000 * s:.3f} ms", f"{s / ours:.2f}"] for name, s in seconds.items()}
    _table(f"One text of {tokens} tokens, threads: {options.threads}", ["p50", "relative to ours"], rows)


def _many_texts(methods: dict[str, Any], texts: list[str], options: argparse.Namespace) -> None:
    best = {}
    for name, method in methods.items():
        if name.startswith("bare"):
            continue
        tried = {size: _time(partial(method, texts[:1000], batch_size=size)) for size in BATCHES}
        best[name] = min(tried, key=lambda size: tried[size])
    calls: dict[Any, Callable[[], Any]] = {
        name: partial(methods[name], texts, batch_size=best[name]) for name in best
    }
    seconds = _rounds(calls, options.rounds, 1)
    ours = seconds["ours, int8"]
    rows = {n: [f"{len(texts) / s:,.0f}", str(best[n]), f"{s / ours:.2f}"] for n, s in seconds.items()}
    title = f"{len(texts)} texts, threads: {options.threads}, each method with its best batch size"
    _table(title, ["texts per second", "batch", "relative to ours"], rows)


def _heads(run: Path, text: str, texts: list[str], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        classifiers = {
            count: _of_heads(run, count, Path(folder, str(count)), options.threads) for count in (1, 32)
        }
        one = _rounds({n: partial(c, text) for n, c in classifiers.items()}, options.rounds, LATENCIES)
        many = _rounds({n: partial(c, texts) for n, c in classifiers.items()}, options.rounds, 1)
    rows = {
        f"{n} of 5 labels": [f"{1000 * one[n]:.3f} ms", f"{len(texts) / many[n]:,.0f}"] for n in classifiers
    }
    rows["ratio of the times"] = [f"{one[32] / one[1]:.3f}", f"{many[32] / many[1]:.3f}"]
    _table("Many heads, int8", ["one text, p50", "texts per second"], rows)


def _startup(bundle: Path, rounds: int) -> None:
    """A new process: seconds to import numpy, onnxruntime and tokenizers, and seconds to the first label."""
    rows: dict[str, list[str]] = {}
    samples: dict[str, list[list[float]]] = {name: [] for name in STARTUP}
    for _ in range(rounds):
        for name, code in STARTUP.items():
            whole = (
                "import resource, sys, time; start = time.perf_counter(); "
                f"import numpy, onnxruntime, tokenizers; {code}\n"
                "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
            )
            done = subprocess.run(
                [sys.executable, "-c", whole, bundle], capture_output=True, text=True, check=True
            )
            samples[name].append([float(value) for value in done.stdout.split()])
    for name, runs in samples.items():
        seconds, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        rows[name] = [f"{seconds:.3f} s", f"{memory * 1024 / 1e6:.0f} MB"]
    _table("A new process", ["seconds", "peak memory"], rows)


def _rounds(calls: dict[Any, Callable[[], Any]], rounds: int, repeats: int) -> dict[Any, float]:
    """For each call, the median over the rounds of its median seconds in a round."""
    samples: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            samples[name].append(statistics.median(_time(call) for _ in range(repeats)))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def _time(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _methods(run: Path, threads: int) -> dict[str, Any]:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, pipeline
    from transformers.utils import logging

    from export import Classifier

    logging.set_verbosity(logging.CRITICAL)  # the pipeline warns of an unknown model class
    torch.set_num_threads(threads)
    bundle = run / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(bundle, model_max_length=manifest["max_length"])
    settings = {"tokenizer": tokenizer, "truncation": True}
    student = _hugging_face(run)
    methods: dict[str, Any] = {
        "transformers pipeline, torch": pipeline(
            "text-classification", model=student, device="cpu", **settings
        )
    }
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    sessions, folders = {}, _exported_by_optimum(student)
    for variant, file in manifest["variants"].items():
        sessions[variant] = onnxruntime.InferenceSession(
            bundle / file, session_options, providers=["CPUExecutionProvider"]
        )
        folders[f"our graph, {variant}"] = folder = Path(tempfile.mkdtemp())
        _one_head(bundle, file, manifest["heads"][0], folder)
    for name, folder in folders.items():
        (file,) = folder.glob("*.onnx")
        model = ORTModelForSequenceClassification.from_pretrained(
            folder, file_name=file.name, session_options=session_options, provider="CPUExecutionProvider"
        )
        methods[f"optimum pipeline, {name}"] = pipeline("text-classification", model=model, **settings)
    backend = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    backend.no_padding()
    backend.enable_truncation(manifest["max_length"])
    for variant, session in sessions.items():
        methods[f"bare tokenizer and session, {variant}"] = _bare(backend, session)
    for variant in manifest["variants"]:
        methods[f"ours, {variant}"] = Classifier.load(bundle, variant=variant, threads=threads)
    return methods


def _bare(tokenizer: Any, session: Any) -> Callable[[str], Any]:
    import numpy as np

    def call(text: str) -> Any:
        ids = np.array([tokenizer.encode(text).ids])
        return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    return call


def _student(run: Path) -> MultiHeadClassifier:
    """The student of a run."""
    from distill.models.classifier import MultiHeadClassifier
    from distill.models.saved_networks import load_classifier

    network, _ = load_classifier(run / "stages" / "fit_student")
    if not isinstance(network, MultiHeadClassifier):
        raise SystemExit(f"{run}: has a student of the family {network.family!r}, expected 'heads'")
    return network


def _hugging_face(run: Path) -> Any:
    """The run's student with its first head only, as a model for the transformers pipeline."""
    import torch
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    network = _student(run)
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
    """Folders with the student as optimum exports it, in fp32 and quantized for AVX512-VNNI."""
    import warnings

    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import BertOnnxConfig
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    exported, quantized = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer warnings about shapes that are constant here
        export(student, BertOnnxConfig(student.config, task="text-classification"), exported / "model.onnx")
    student.config.save_pretrained(exported)
    scheme = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    ORTQuantizer.from_pretrained(exported).quantize(scheme, save_dir=quantized)
    return {"its own export, fp32": exported, "its own export, int8": quantized}


def _one_head(bundle: Path, file: str, head: dict[str, Any], folder: Path) -> None:
    """Write a folder for optimum: the graph with the output of one head only, named logits."""
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
    """A loaded bundle of the run's encoder with `count` heads of five labels."""
    from distill.heads import Head
    from distill.models.classifier import MultiHeadClassifier
    from distill.storage import read_json
    from export import Classifier
    from export.bundle import manifest as manifests
    from export.bundle.files import read_bundle, write_bundle
    from export.graph.quantize import quantize_int8
    from export.graph.to_onnx import to_onnx
    from teachers.checkpoints import SCALES

    trained = _student(run)
    manifest = read_bundle(run / "bundle")
    heads = tuple(Head(f"h{i}", "single_label", tuple("abcde")) for i in range(count))
    network = MultiHeadClassifier(trained.encoder, heads, pooling=trained.pooling).eval()
    folder.mkdir()
    outputs = [f"logits_{head.name}" for head in heads] if count > 1 else ["logits"]
    to_onnx(network, outputs, folder / "fp32.onnx", positions=manifest.max_length)
    quantize_int8(folder / "fp32.onnx", folder / "int8.onnx", [], read_json(run / SCALES))
    served_heads = tuple(
        manifests.Head(h.name, h.kind, h.labels, output) for h, output in zip(heads, outputs, strict=True)
    )
    manifest_of_heads = manifests.Manifest(
        "heads", served_heads, manifest.max_length, manifest.pad_token_id, {"int8": manifests.INT8}, "int8"
    )
    tokenizer = run / "bundle" / manifests.TOKENIZER
    write_bundle(
        folder / "bundle",
        manifest_of_heads,
        {manifests.INT8: folder / "int8.onnx", manifests.TOKENIZER: tokenizer},
    )
    return Classifier.load(folder / "bundle", threads=threads)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    main()
