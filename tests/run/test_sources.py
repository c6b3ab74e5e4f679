"""A run on several sources, each with its own columns, splits and heads."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from distill.cli.main import main
from distill.data.dataset import load_split
from distill.recipe.load import dump_yaml, load_recipe
from distill.run import Run
from distill.stages import artifacts
from distill.stages.fit_student import student_training
from distill.stages.train import distilled
from distill.training.devices import make_accelerator
from tinyheads import Classifier

SETTINGS = {
    "augment": {"copies": 2},
    "student": {"layers": 1, "hidden": 16, "attention_heads": 2, "epochs": 3, "lr": 1e-2},
    "gates": {"parity": 0.01, "int8_drop": 1, "int8_changed": 1, "int8_log_loss": 9},
    "precision": "no",
    "trackers": [],
}


@pytest.fixture(scope="module")
def merged(tmp_path_factory, toy_corpus, tiny_encoder_folder, run_distill) -> Path:
    """shop.csv: intent, with files of its own; mail.csv: flags, text in another column, fractions."""
    folder = tmp_path_factory.mktemp("merged")
    teacher = tiny_encoder_folder(folder, hidden=32, layers=2)

    def write(name: str, rows: int, seed: int, columns: dict[str, str]) -> None:
        corpus = toy_corpus(rows, seed)
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(columns.values())
            for i, text in enumerate(corpus.texts):
                flags = "|".join(f for f, yes in zip("ab", corpus.labels["flags"][i], strict=True) if yes)
                row = {"text": text, "intent": "xyz"[corpus.labels["intent"][i]], "flags": flags or "none"}
                out.writerow([row[key] for key in columns])

    for split, rows, seed in (("train", 40, 1), ("validation", 30, 2), ("test", 30, 3)):
        write(f"shop-{split}.csv", rows, seed, {"text": "text", "intent": "intent"})
    write("mail.csv", 500, 4, {"text": "body", "flags": "tags", "intent": "ignored"})
    (folder / "inbox.txt").write_text("the box is late please\nwe love the box\nrefund my order\n", "utf-8")
    recipe = {
        "name": "merged",
        "data": {
            "train": [
                {"file": "shop-train.csv", "validation": "shop-validation.csv", "test": "shop-test.csv"},
                {"file": "mail.csv", "text": "body", "columns": {"flags": "tags"}},
            ],
            "unlabeled": ["inbox.txt"],
        },
        "heads": {"intent": {"column": "intent"}, "flags": {"kind": "multi_label", "none": "none"}},
        "teacher": {"encoder": str(teacher), "epochs": 4, "lr": 5e-3},
        **SETTINGS,
    }
    (folder / "recipe.yaml").write_text(dump_yaml(recipe), "utf-8")
    done = run_distill("run", folder / "recipe.yaml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout, "utf-8")
    return folder


def opened(folder: Path, *overrides: str) -> Run:
    recipe = load_recipe(folder / "recipe.yaml", overrides=overrides)
    return Run(recipe, folder / "run", make_accelerator(recipe, folder / "run"))


def test_each_source_is_reported_by_head(merged) -> None:
    report = json.loads((merged / "run/report.json").read_text("utf-8"))
    shop, mail = report["sources"]
    assert shop == {
        "name": "shop-train.csv",
        "rows": {"train": 40, "validation": 30, "test": 30},
        "labelled": {
            "intent": {"train": 40, "validation": 30, "test": 30},
            "flags": {"train": 0, "validation": 0, "test": 0},
        },
    }
    assert mail["rows"] == {"train": 400, "validation": 50, "test": 50}
    assert mail["labelled"]["flags"] == mail["rows"] and not any(mail["labelled"]["intent"].values())
    heads = report["heads"]
    assert (heads["intent"]["labelled"], heads["flags"]["labelled"]) == (30, 50)
    assert json.loads((merged / "run/data_report.json").read_text("utf-8"))["sources"] == [shop, mail]
    table = [line.split() for line in (merged / "stdout").read_text("utf-8").splitlines()]
    assert ["source", "head", "train", "validation", "test"] in table
    assert ["mail.csv", "flags", "400", "50", "50"] in table
    page = (merged / "run/report.html").read_text("utf-8")
    assert re.search(">mail.csv</th><td[^>]*>flags</td>", page)
    assert "mail.csv" in (merged / "run/bundle/README.md").read_text("utf-8")
    assert Classifier.load(merged / "run/bundle").heads == ("intent", "flags")


def test_the_transfer_set_has_the_source_of_every_text(merged) -> None:
    run = opened(merged)
    transfer = artifacts.transfer_set(run)
    sources = np.array(transfer["source"])
    assert sources[:440].tolist() == list(load_split(run.stage("prepare"), "train")["source"])
    assert (sources == 0).sum() > 80 and (sources == 1).sum() > 800
    assert sources[-3:].tolist() == [2, 2, 2]  # unlabelled texts are one more source


def test_an_epoch_reads_of_a_source_in_proportion_to_the_root_of_its_size(merged) -> None:
    run = opened(merged)
    mixture = artifacts.mixture(run, artifacts.transfer_set(run))
    read = np.bincount(mixture.sources[mixture.rows(0, 0)])
    roots = np.sqrt([40, 400, 3])
    assert read / read.sum() == pytest.approx(roots / roots.sum(), abs=0.001)
    everything = artifacts.mixture(opened(merged, "data.mixing=1"), artifacts.transfer_set(run))
    read = np.bincount(everything.sources[everything.rows(0, 0)])
    assert read / read.sum() == pytest.approx(np.array([40, 400, 3]) / 443, abs=0.001)


def test_the_heads_of_several_sources_are_balanced(merged, finished, tmp_path) -> None:
    for folder, balanced in ((merged / "run", True), (finished["folder"], False)):
        recipe = load_recipe(folder / "recipe.yaml")
        run = Run(recipe, folder, make_accelerator(recipe, tmp_path))
        assert student_training(run, tmp_path).job.balanced == balanced


def test_masked_texts_teach_the_heads_of_their_source_alone(merged, tmp_path, encode) -> None:
    for fill in (True, False):
        run = opened(merged, f"distillation.fill={fill}".lower())
        examples = distilled(run, artifacts.labels(run, "train"), encode, tmp_path)
        known = {head: ~np.isnan(soft).any(-1) for head, soft in examples.soft.items()}
        sources = examples.mixture.sources
        for head, source in (("intent", 0), ("flags", 1)):
            expected = np.isin(sources, (source, 2)) if not fill else np.ones(len(sources), bool)
            assert (known[head] == expected).all()


def test_a_run_that_masks_redoes_the_student_alone(merged, run_distill) -> None:
    words = ["--set", "distillation.fill=false", "--to", "calibrate", "--json"]
    before = (merged / "run/stages/label/stage.json").read_bytes()
    done = run_distill("run", merged / "recipe.yaml", "--out", merged / "run", *words)
    assert done.returncode == 0, done.stderr
    assert (merged / "run/stages/label/stage.json").read_bytes() == before
    validation = opened(merged).metrics("fit_student")["validation"]
    assert np.isfinite([value for value in validation.values() if value is not None]).all()


def test_evaluate_reads_the_columns_of_a_source(merged, capfd) -> None:
    command = ["evaluate", str(merged / "run/bundle"), str(merged / "mail.csv")]
    assert main([*command, "--text=body", "--heads=flags", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["texts"] == {"flags": 500}


def test_check_shows_the_sources(merged, capfd) -> None:
    assert main(["check", str(merged / "recipe.yaml"), "--no-measure"]) == 0
    rows = [row.split() for row in capfd.readouterr().out.splitlines()]
    assert ["shop-train.csv", "intent", "40", "30", "30"] in rows
    assert main(["check", str(merged / "recipe.yaml"), "--no-measure", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert [source["name"] for source in plan["sources"]] == ["shop-train.csv", "mail.csv"]
    assert len(plan["settings"]["augment"]["copies"]) == 2


def test_the_recipe_of_a_run_describes_the_same_run(merged, run_distill) -> None:
    done = run_distill("run", merged / "recipe.yaml", "--out", merged / "run")
    assert done.returncode == 0, done.stderr
    before = {path: path.stat().st_mtime_ns for path in (merged / "run/stages").glob("*/stage.json")}
    done = run_distill("run", merged / "run/recipe.yaml", "--out", merged / "run")
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (merged / "run/stages").glob("*/stage.json")}
