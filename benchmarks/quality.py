"""Compare a bundle with other methods on the same splits: quality, size, speed, seconds of training.

    python benchmarks/quality.py RECIPE --out FOLDER --peers PYTHON [--ours RUN] [--only NAME ...]

RECIPE is a recipe, or a folder of data for which `distill init` proposes one. `--ours` is the folder of a
complete `distill run`; without it the recipe is run. The peers run under another Python with the packages of
quality-requirements.txt. They train on the first head, or on `--head`. Each method writes FOLDER/NAME.json.
To run a method again, remove that file and FOLDER/NAME/. Table and chart contain every method with a record.
`--jobs` trains several methods at once on shares of the threads. Speeds are measured afterwards, in sequence.

All methods use the same calibration: the function of `distill run` fits temperature and thresholds on their
validation scores, and the metrics are computed once on their test scores. A method may use the validation
texts in its own way, too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.evaluation.calibration import calibrate
from distill.evaluation.metrics import labelled, quality, without_nan
from distill.heads import Head
from distill.recipe.load import load_recipe
from distill.storage import read_json, write_json
from export.runtime.cpus import available_cores
from teachers.checkpoints import locate

HERE = Path(__file__).parent
PEERS = ("tfidf", "fasttext", "fasttext-ftz", "model2vec", "model2vec-int8", "setfit")
OWN = ("teacher", "plain", "textbrewer", "ours")
RUNS = ("teacher", "ours")  # trained by the run itself
NAMES = {
    "tfidf": "TF-IDF, logistic regression",
    "fasttext": "fastText",
    "fasttext-ftz": "fastText, quantised",
    "model2vec": "model2vec",
    "model2vec-int8": "model2vec, int8",
    "setfit": "SetFit",
    "teacher": "teacher",
    "plain": "student, hard labels",
    "textbrewer": "student, TextBrewer",
    "ours": "ours",
}
SHOWN = {"single_label": ("accuracy", "macro_f1"), "multi_label": ("micro_f1", "macro_f1")}
SPLITS = ("train", "validation", "test")


def main() -> int:
    """Run the methods that have no record, print the table and draw the chart."""
    options = _options()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = _environment(options.threads)
    recipe, root = _recipe(options, out, environment)
    run = options.ours.resolve() if options.ours else out / "run"
    if not options.ours:
        _distill(environment, "run", recipe, "--data-root", root, "--out", run)
    choices = {"head": options.head, "encoder": options.encoder, "threads": options.threads}
    head, labels = write_job(out, run, data_root=root, **choices)
    selected = [name for name in (*PEERS, *OWN) if name in (options.only or NAMES)]
    names = [name for name in selected if not (out / f"{name}.json").exists()]
    share = max(1, options.threads // options.jobs)
    _train(out, names, options.peers, threads=share, jobs=options.jobs)
    failed = []
    for name in names:
        trained = read_json(out / name / "trained.json")
        if trained and _step(out, name, options.peers, "measure", options.threads):
            result = judge(head, np.load(out / name / "scores.npz"), labels)
            measured = read_json(out / name / "measured.json")
            write_json(out / f"{name}.json", {"method": name, **trained, **measured, "quality": result})
        else:
            failed.append(name)
    records = [record for name in (*PEERS, *OWN) if (record := read_json(out / f"{name}.json"))]
    counts = ", ".join(f"{len(labels[split]):,} {split}" for split in SPLITS)
    title = f"{load_recipe(recipe).name}, head {head.name}: {len(head.labels)} labels, {counts} texts"
    title += f"; speeds with {options.threads} threads"
    text = f"{title}\n\n{table(records, head.kind)}\n\n{notes(records)}\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    _draw(out, records, head.kind, title, options.peers)
    print(text)
    for name in failed:
        print(f"{name}: failed (see {out / name}.log)", file=sys.stderr)
    return 1 if failed else 0


def write_job(
    out: Path,
    run: Path,
    *,
    data_root: Path,
    threads: int,
    head: str | None = None,
    encoder: str | None = None,
) -> tuple[Head, dict[str, Any]]:
    """Write the job for the methods; returns the head and its labels in each split.

    Args:
        out: The folder of the job. An existing job must be the same.
        run: A complete run, whose prepared splits all methods use.
        data_root: The folder that the recipe's data paths are relative to.
        threads: Threads of each method when its speed is measured.
        head: The name of the head; by default the first.
        encoder: The encoder of model2vec and SetFit; by default the teacher's before fine-tuning.
    """
    prepared, recipe = run / "stages" / "prepare", load_recipe(run / "recipe.yaml")
    heads = load_heads(prepared)
    names = [one.name for one in heads]
    if head is not None and head not in names:
        raise SystemExit(f"--head: unknown head {head!r}, expected one of {', '.join(names)}")
    chosen = heads[names.index(head) if head else 0]
    job = {
        "head": chosen.name,
        "kind": chosen.kind,
        "labels": list(chosen.labels),
        "encoder": encoder or locate(recipe.teacher.encoder, recipe.teacher.sha256).path,
        "run": str(run),
        "data_root": str(data_root),
        "threads": threads,
        "seed": recipe.seed,
    }
    if (before := read_json(out / "job.json")) not in (None, job):
        changed = ", ".join(key for key in job if before.get(key) != job[key])
        raise SystemExit(f"{out}: holds a job of another {changed} (choose another folder)")
    labels = {}
    for split in SPLITS:
        rows = load_split(prepared, split)
        known = hard_labels(rows, heads)[chosen.name]
        kept = np.flatnonzero(labelled(known, chosen))
        labels[split] = known[kept]
        texts = rows["text"]
        write_json(
            out / f"{split}.json",
            {"texts": [texts[int(i)] for i in kept], "labels": labels[split].tolist()},
        )
    write_json(out / "job.json", job)
    return chosen, labels


def judge(head: Head, scores: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, float | None]:
    """Every metric on test, with temperature and thresholds fitted on validation.

    Args:
        head: The head.
        scores: Logits `[texts, labels]` of validation and test.
        labels: Labels of both splits, in the format of `metrics.quality`.
    """
    fitted = calibrate(head, scores["validation"], labels["validation"])
    result = quality(
        head,
        scores["test"],
        labels["test"],
        temperature=fitted.temperature,
        thresholds=fitted.thresholds,
    )
    return without_nan(result)


def table(records: Sequence[Mapping[str, Any]], kind: str) -> str:
    """A Markdown table of the methods' records."""
    metrics = [metric.replace("_f1", " F1") for metric in SHOWN[kind]]
    lines = [["", *metrics, "MB", "texts per second", "one text, p50", "training", "of which teacher"]]
    for record in records:
        seconds = record["seconds"]
        taught = seconds.get("teacher", 0) + seconds.get("label", 0)
        cells = [
            NAMES[record["method"]],
            *(f"{record['quality'][metric]:.4f}" for metric in SHOWN[kind]),
            f"{record['bytes'] / 1e6:.1f}",
            f"{record['texts_a_second']:,.0f}",
            f"{record['p50_ms']:.2f} ms",
            f"{sum(seconds.values()):,.0f} s",
            f"{taught:,.0f} s" if taught else "",
        ]
        lines.append([f"**{cell}**" if record["method"] == "ours" and cell else cell for cell in cells])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


def notes(records: Sequence[Mapping[str, Any]]) -> str:
    """One line per method: settings, timing and versions."""
    lines = []
    for record in records:
        versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
        times = f"fastest in batches of {record['batch_size']}"
        if record["method"] not in RUNS:
            times += f"; {record['threads']} thread{'s' * (record['threads'] > 1)} in training"
        lines.append(f"- {NAMES[record['method']]}: {record['settings']}; {times}. {versions}.")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path, help="a recipe, or a folder of data")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data-root", type=Path, help="folder that data paths are relative to")
    parser.add_argument("--teacher", help="teacher of a proposed recipe")
    parser.add_argument("--ours", type=Path, metavar="RUN", help="a complete run of the recipe")
    parser.add_argument("--head", help="the head to measure (the first)")
    parser.add_argument(
        "--encoder", help="encoder of model2vec and SetFit (the teacher's before fine-tuning)"
    )
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="the Python of the peers")
    parser.add_argument(
        "--only", nargs="+", choices=(*PEERS, *OWN), metavar="NAME", help="run only these methods"
    )
    parser.add_argument("--threads", type=int, default=min(4, available_cores()))
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="methods to train at once")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs} is too small, expected at least 1")
    return options


def _recipe(options: argparse.Namespace, out: Path, environment: Mapping[str, str]) -> tuple[Path, Path]:
    """The recipe file, and the folder that its data paths are relative to."""
    recipe = options.recipe.resolve()
    if recipe.is_dir():
        proposed = out / "recipe.yaml"
        if not proposed.exists():
            arguments = ["--teacher", options.teacher] if options.teacher else []
            _distill(environment, "init", recipe, "--out", proposed, *arguments)
        recipe = proposed
    loaded = load_recipe(recipe, data_root=options.data_root)
    return recipe, Path(loaded.data.root)


def _distill(environment: Mapping[str, str], *arguments: object) -> None:
    """Run a `distill` command of this checkout, independent of the working directory."""
    command = [sys.executable, "-m", "distill.cli.main", *map(str, arguments)]
    safe = {**environment, "PYTHONSAFEPATH": "1"}
    if status := subprocess.run(command, stdout=subprocess.DEVNULL, env=safe, check=False).returncode:
        raise SystemExit(status)


def _environment(threads: int) -> dict[str, str]:
    """Environment variables: the number of threads of each library, and a path to the project's packages."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **dict.fromkeys(counts, str(threads)),
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONPATH": os.pathsep.join(path),
    }


def _train(out: Path, names: Sequence[str], peers: str, *, threads: int, jobs: int) -> None:
    """Train methods, `jobs` at once. A method that needs another, such as `fasttext-ftz`, runs after it."""
    families = [list(family) for _, family in itertools.groupby(names, lambda name: name.split("-")[0])]

    def train(family: Sequence[str]) -> None:
        for name in family:
            if not (out / name / "trained.json").exists():
                _step(out, name, peers, "train", threads)

    with ThreadPoolExecutor(jobs) as executor:
        list(executor.map(train, families))


def _step(out: Path, name: str, peers: str, step: str, threads: int) -> bool:
    """Train or measure one method in its own process; returns whether it succeeded."""
    print(f"{name}: {step}, log in {out / name}.log", file=sys.stderr, flush=True)
    program, python = ("quality_peers.py", peers) if name in PEERS else ("quality_own.py", sys.executable)
    environment = _environment(threads)
    if name == "textbrewer":  # pure Python, loaded from the peers' environment
        code = "import importlib.util as u; print(u.find_spec('textbrewer').submodule_search_locations[0])"
        location = subprocess.run([peers, "-c", code], capture_output=True, text=True, check=False)
        environment["TEXTBREWER"] = location.stdout.strip() or "textbrewer"
    command = [python, str(HERE / program), str(out), name, step, str(threads)]
    with (out / f"{name}.log").open("a", encoding="utf-8") as log:
        return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode == 0


def _draw(out: Path, records: Sequence[Mapping[str, Any]], kind: str, title: str, peers: str) -> None:
    """Draw the chart with the matplotlib of the peers' environment."""
    metric = SHOWN[kind][0]
    points = [
        {
            "name": NAMES[record["method"]],
            "own": record["method"] in ("teacher", "plain", "ours"),
            "quality": record["quality"][metric],
            "megabytes": record["bytes"] / 1e6,
            "rate": record["texts_a_second"],
        }
        for record in records
    ]
    chart = {"title": title, "metric": metric.replace("_f1", " F1"), "points": points}
    write_json(out / "chart.json", chart)
    drawn = subprocess.run([peers, str(HERE / "quality_chart.py"), str(out)], check=False)
    if drawn.returncode:
        print(f"chart: not drawn (install matplotlib for {peers})", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
