"""A head added to a finished run, frozen and with replay, beside a training of all heads together.

    python -m benchmarks.added_head RUN FOLDER --head NAME --train FILE --validation FILE --test FILE
        --column COLUMN [--together RUN] [--set KEY=VALUE] [--set-replay KEY=VALUE]

The runs are FOLDER/frozen and FOLDER/replay; `--together` names a finished run of all heads. The old heads'
logits are compared on the texts of RUN's test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from distill.add_head import add_head
from distill.data.dataset import load_split
from distill.heads import columns
from distill.models.predict import predict_logits
from distill.models.saved_networks import load_classifier
from distill.storage import read_json
from export import Classifier

FORMS = ("torch", "fp32", "int8")


def logits(run: Path, form: str, texts: list[str]) -> dict[str, Any]:
    """The logits of each head, as torch, ONNX fp32 or int8 computes them."""
    if form != "torch":
        return dict(Classifier.load(run / "bundle", variant=form).logits(texts))
    network, tokenizer = load_classifier(run / "stages/fit_student")
    encoded = network.text_encoder(tokenizer, tokenizer.model_max_length)(texts)
    every = predict_logits(network, encoded, Accelerator(cpu=True), exact=True)
    return {head.name: every[:, part] for head, part in columns(network.heads)}


def rows(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    run, head = Path(options.run), options.head
    texts = list(load_split(run / "stages/prepare", "test")["text"])
    old = {form: logits(run, form, texts) for form in FORMS}
    runs = {"together": Path(options.together)} if options.together else {}
    for mode in ("frozen", "replay"):
        place = {"validation": options.validation, "test": options.test, "column": options.column}
        settings = options.set + options.set_replay * (mode == "replay")
        done = add_head(
            run, head, options.train, mode=mode, out=Path(options.folder, mode), overrides=settings, **place
        )
        runs[mode] = done.folder
        now = {form: logits(done.folder, form, texts) for form in FORMS}
        for name in old["torch"]:
            far = [f"{form} {np.abs(old[form][name] - now[form][name]).max():.3g}" for form in FORMS]
            kept = done.report["kept"][name]
            quality = f"{kept['before']:.4f} -> {kept['after']:.4f}" if "before" in kept else "same"
            yield f"{mode}: {name}: {quality}, {kept['changed']:.2%} changed; logits: {', '.join(far)}"
    for name, folder in runs.items():
        found = read_json(folder / "report.json")["heads"][head]["test"]
        first = next(iter(found["student"]))
        yield f"{name}: {head}: {first} " + ", ".join(f"{form} {found[form][first]:.4f}" for form in found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("folder")
    for name in ("head", "train", "validation", "test", "column"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--together")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--set-replay", action="append", default=[])
    for line in rows(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
