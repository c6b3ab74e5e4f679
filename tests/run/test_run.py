"""`distill run` from a recipe to a bundle, and the commands that read what it left."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.data.dataset import load_split
from distill.evaluation.suspects import SPLITS
from distill.models.saved_networks import load_classifier
from distill.recipe.load import dump_yaml, load_yaml
from distill.training.checkpoint import load_tensors
from export import Classifier

pytestmark = pytest.mark.exporting


def test_the_last_line_of_stdout_is_the_report(finished):
    lines = finished["stdout"].splitlines()
    assert json.loads(lines[-1]) == json.loads((finished["folder"] / "report.json").read_text("utf-8"))


def test_report_has_the_documented_shape(finished):
    report = finished["report"]
    assert set(report) >= {"name", "seed", "heads", "artefact", "latency_ms", "throughput", "stages"}
    assert list(report["heads"]) == ["intent", "flags"]
    for head in report["heads"].values():
        assert set(head) == {"labels", "kind", "labelled", "texts", "test", "agreement", "retention"}
        assert list(head["test"]) == ["teacher", "student", "fp32", "int8"]
    assert set(report["artefact"]) >= {"fp32_bytes", "int8_bytes", "parameters"}
    assert set(report["latency_ms"]) == {"p50", "p99", "tokens", "threads"}
    for stage in report["stages"].values():
        assert set(stage) == {"seconds", "peak_rss_bytes", "device"}
    assert list(report["stages"]) == [
        *("prepare", "fit_teacher", "label", "fit_student", "calibrate", "export", "check", "bundle")
    ]


def test_teacher_and_student_learnt(finished):
    for head in ("intent", "flags"):
        test = finished["report"]["heads"][head]["test"]
        for form in ("teacher", "student", "int8"):
            assert next(iter(test[form].values())) > 0.9, (head, form, test[form])


def test_the_check_leaves_an_analysis_and_labels_to_review(finished, toy_heads):
    folder = finished["folder"] / "stages" / "check"
    analysis = json.loads((folder / "analysis.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert analysis["split"] == "test" and analysis["form"] == "int8"
    assert [*analysis["heads"]] == [head.name for head in toy_heads]
    for head in toy_heads:
        found, quality = analysis["heads"][head.name], finished["report"]["heads"][head.name]
        assert {*found["intervals"]} == {"teacher", "student", "fp32", "int8", "floor"}
        low, high = found["intervals"]["int8"]
        assert low <= quality["test"]["int8"][head.first_metric] <= high
        assert found["labelled"] == quality["labelled"] and found["floor"][head.first_metric] > 0.9
        assert found["floor"]["train_texts"] <= finished["report"]["labelled"][head.name]["train"]
        assert {*found["train_labels"]} == {row["label"] for row in found["classes"]} == {*head.labels}
    with (folder / "label_review.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["split"] for row in rows] == sorted((row["split"] for row in rows), key=SPLITS.index)
    assert all(row["label"] != row["suggested"] and row["text"] for row in rows)


def test_the_confidence_in_the_training_labels_is_kept(finished, toy_heads):
    found = load_tensors(finished["folder"] / "stages" / "fit_teacher" / "label_confidence.safetensors")[0]
    rows = finished["report"]["rows"]["train"]
    assert {name: len(mean) for name, mean in found.items()} == {head.name: rows for head in toy_heads}
    assert all(((mean >= 0) & (mean <= 1)).all() for mean in found.values())


def test_parity_covers_the_whole_test_split(finished):
    parity = finished["report"]["parity"]
    assert parity["texts"] == 90
    for head in parity["heads"].values():
        assert head["max_difference"] <= 1e-3
        assert head["other_labels"] == 0


def test_bundle_classifies(finished):
    classifier = Classifier.load(finished["folder"] / "bundle")
    answer = classifier("where is my parcel please")
    assert list(answer) == ["intent", "flags"]
    assert answer["intent"]["label"] == "track"
    assert [flag["label"] for flag in answer["flags"]] == ["polite"]
    assert list(classifier("we love it", heads=["flags"])) == ["flags"]


def test_bundle_holds_what_readers_expect(finished):
    bundle = finished["folder"] / "bundle"
    names = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert names == {
        *("manifest.json", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"),
        *("onnx/model.onnx", "onnx/model_quantized.onnx", "replay.npz"),
    }
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    assert {"recipe_sha256", "quality", "parity", "versions"} <= set(manifest)
    card = (bundle / "README.md").read_text("utf-8")
    assert "toy" in card and "truncated to 32 tokens" in card


def test_report_page_names_every_head_and_stage(finished):
    page = (finished["folder"] / "report.html").read_text("utf-8")
    for word in ("intent", "flags", "fit_student", "retention", "int8"):
        assert word in page


def test_a_finished_run_is_not_done_again(job, finished, capfd):
    before = (finished["folder"] / "bundle" / "manifest.json").stat().st_mtime_ns
    assert main(["run", str(job), "--out", str(finished["folder"])]) == 0
    assert capfd.readouterr().err.count("done before") == 8
    assert (finished["folder"] / "bundle" / "manifest.json").stat().st_mtime_ns == before


def test_a_changed_setting_redoes_what_follows_it(job, finished, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    change = ["--set", "student.epochs=1", "--set", "gates.int8_drop=1.0", "--to", "fit_student"]
    assert main(["run", str(job), "--out", str(run), "--json", *change]) == 0
    printed = capfd.readouterr()
    assert [line.split(":")[0] for line in printed.err.splitlines() if "done before" in line] == [
        *("prepare", "fit_teacher", "label")
    ]
    assert json.loads(printed.out)["metrics"]["epochs"] == 1
    weights = run / "stages" / "fit_student" / "model.safetensors"
    before = weights.read_bytes()
    assert main(["run", str(job), "--out", str(run), *change, "--set", "student.seed=1"]) == 0
    assert capfd.readouterr().err.count("done before") == 3
    assert weights.read_bytes() != before


def test_other_unlabelled_texts_leave_the_teacher_done(job, finished, tmp_path, capfd):
    run, more = tmp_path / "run", tmp_path / "more.txt"
    shutil.copytree(finished["folder"], run)
    more.write_text("where is the parcel that I sent back\nthank you, we love the coat\n", "utf-8")
    found = [load_split(run / "stages" / "prepare", "unlabeled")["text"][:]]
    change = ["--set", f"data.unlabeled=[{more}]", "--to", "label"]
    assert main(["run", str(job), "--out", str(run), "--json", *change]) == 0
    printed = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in printed if "done before" in line] == ["fit_teacher"]
    found.append(load_split(run / "stages" / "prepare", "unlabeled")["text"][:])
    assert found[0] != found[1] and len(found[1]) == 2
    transfer = load_split(run / "stages" / "label", "transfer")["text"]
    assert set(found[1]) <= set(transfer)


def test_from_does_a_stage_again(job, finished, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    assert main(["run", str(job), "--out", str(run), "--from", "calibrate"]) == 0
    assert capfd.readouterr().err.count("done before") == 4


def test_a_refusing_gate_exits_1_and_writes_no_bundle(job, finished, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    shutil.rmtree(run / "bundle")
    assert main(["run", str(job), "--out", str(run), "--set", "gates.parity=1e-12"]) == 1
    *parity, left = capfd.readouterr().err.splitlines()[-5:]  # of two heads, on two splits
    assert all(line.startswith("distill: parity: head") for line in parity)
    assert "metrics are in" in left and "earlier run" not in left
    assert not (run / "bundle").exists()
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert len(report["refused"]) == 4 and report["heads"] == finished["report"]["heads"]
    assert main(["run", str(job), "--out", str(run), "--set", "gates.parity=1e-12", "--to", "check"]) == 1
    assert main(["run", str(job), "--out", str(run)]) == 0
    assert json.loads((run / "report.json").read_text("utf-8"))["refused"] == []


def test_predict_prints_a_line_a_text(finished, capfd):
    assert main(["predict", str(finished["folder"] / "bundle"), "we love it happy", "money back"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["intent"]["label"] for line in lines] == ["thank", "refund"]
    assert lines[0]["text"] == "we love it happy"
    assert main(["predict", str(finished["folder"] / "bundle"), "--heads=flags", "we love it"]) == 0
    assert list(json.loads(capfd.readouterr().out)) == ["text", "flags"]
    assert main(["predict", str(finished["folder"] / "bundle"), "--heads=flags", "--", "-5 degrees"]) == 0
    assert json.loads(capfd.readouterr().out)["text"] == "-5 degrees"


def test_evaluate_gives_the_figures_of_the_report(job, finished, capfd):
    bundle, data = str(finished["folder"] / "bundle"), str(job.parent / "test.csv")
    assert main(["evaluate", bundle, data, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["rows"] == 90
    for head, quality in found["heads"].items():
        assert quality == pytest.approx(finished["report"]["heads"][head]["test"]["int8"])


def test_evaluate_counts_texts_of_labels_that_min_texts_left_out_as_the_report_does(
    tiny_job, tmp_path, capfd
):
    for name in ("train", "test"):
        rows = (tiny_job.parent / f"{name}.csv").read_text("utf-8").splitlines()
        rows[1] = "this is rare,track,rare" if name == "train" else "so is this,track,rare"
        (tmp_path / f"{name}.csv").write_text("\n".join(rows), "utf-8")
    settings = ["data.root=" + str(tmp_path), "data.unlabeled=[]", "heads.flags.min_texts=2"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", str(tiny_job), "--out", str(tmp_path / "run"), *words, "--json"]) == 0
    flags = json.loads(capfd.readouterr().out)["heads"]["flags"]
    words = [str(tmp_path / "run/bundle"), str(tmp_path / "test.csv"), "--heads", "flags", "--json"]
    assert main(["evaluate", *words]) == 0
    found = json.loads(capfd.readouterr().out)
    assert flags["labels"] == 2 and found["texts"]["flags"] == flags["labelled"] == 24
    assert found["heads"]["flags"] == pytest.approx(flags["test"]["int8"]) and not found["unknown_labels"]


def test_evaluate_of_one_head_needs_its_column_alone(job, finished, tmp_path, capfd):
    with (job.parent / "test.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["intent"]) for row in csv.DictReader(file)]
    with (tmp_path / "intents.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "intent"), *rows])
    evaluate = ["evaluate", str(finished["folder"] / "bundle"), str(tmp_path / "intents.csv")]
    assert main(evaluate) == 2
    assert main([*evaluate, "--heads", "intent", "--json"]) == 0
    captured = capfd.readouterr()
    heads = json.loads(captured.out)["heads"]
    assert heads == {"intent": pytest.approx(finished["report"]["heads"]["intent"]["test"]["int8"])}
    assert main([*evaluate, "--heads", "intnt"]) == 2
    assert "did you mean 'intent'" in capfd.readouterr().err


def test_bench_and_report(finished, capfd):
    assert main(["bench", str(finished["folder"] / "bundle")]) == 0
    assert capfd.readouterr().out.startswith("int8: ")
    assert main(["bench", str(finished["folder"] / "bundle"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["latency_ms"]["p50"] > 0
    assert main(["report", str(finished["folder"])]) == 0
    assert capfd.readouterr().out.startswith("head    metric    texts     teacher")


def test_init_proposes_a_recipe_that_runs_unchanged(job, tmp_path, capfd):
    data = tmp_path / "train.csv"
    shutil.copy(job.parent / "train.csv", data)
    recipe = tmp_path / "recipe.yaml"
    teacher = str(job.parent / "tiny-bert")
    assert main(["init", str(data), "--out", str(recipe), "--teacher", teacher]) == 0
    assert main(["check", str(recipe), "--no-measure"]) == 0
    assert main(["init", str(data), "--out", str(recipe)]) == 2  # it is there
    run = ["run", str(recipe), "--out", str(tmp_path / "run"), "--to", "label"]
    assert main(run) == 0, capfd.readouterr().err


def test_the_transfer_set_is_train_and_unlabelled_texts_with_their_copies_each_once(finished):
    def texts(stage, name):
        return list(load_split(finished["folder"] / "stages" / stage, name)["text"])

    transfer, train, inbox = (
        texts("label", "transfer"),
        texts("prepare", "train"),
        texts("prepare", "unlabeled"),
    )
    assert transfer[: len(train)] == train
    first = transfer.index(inbox[0])
    assert transfer[first : first + 3] == inbox and 0 < len(transfer) - first - 3 <= 2 * 3
    assert len(set(transfer)) == len(transfer) and first > 2 * len(train)
    assert not set(transfer) & {*texts("prepare", "validation"), *texts("prepare", "test")}


def test_many_unlabelled_texts_leave_the_copies_to_the_training_texts(job, finished, tmp_path, monkeypatch):
    """They are no part of the budget, lend no words, and the rest of the transfer set stays as it is."""
    monkeypatch.setattr("distill.recipe.defaults.TRANSFER_TOKENS", 20_000)
    found = []
    for name, texts in (
        ("none", []),
        ("many", [f"{i} lines of an inbox that is long" for i in range(2_000)]),
    ):
        (tmp_path / f"{name}.txt").write_text("\n".join([*texts, ""]), "utf-8")
        run = shutil.copytree(finished["folder"], tmp_path / name)
        unlabelled = f"data.unlabeled=[{tmp_path / name}.txt]" if texts else "data.unlabeled=[]"
        settings = ["--set", unlabelled, "--set", "augment.copies=null", "--to", "label"]
        assert main(["run", str(job), "--out", str(run), *settings]) == 0
        found.append(list(load_split(run / "stages/label", "transfer")["text"]))
    alone, beside = found
    assert beside[: len(alone)] == alone and len(beside) == len(alone) + 2_000 and len(alone) > 2 * 479


def test_the_student_was_factorized_and_is_a_plain_encoder_again(finished):
    from safetensors import safe_open

    folder = finished["folder"] / "stages" / "fit_student"
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "encoder.embeddings.word_embeddings.weight" in names
    assert not any("projection" in name for name in names)
    figures = json.loads((folder / "stage.json").read_text("utf-8"))["metrics"]
    assert figures["start"] == "teacher: word embeddings, position embeddings"


@pytest.mark.parametrize("asked, reads", [("null", 6), ("8192", 64)])
def test_a_student_reads_as_much_of_a_text_as_its_teacher(job, tmp_path, capfd, asked, reads):
    """Or as it is told to, up to the teacher's positions."""
    settings = [f"export.max_length={asked}", "teacher.max_length=6", "teacher.epochs=1", "student.epochs=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", str(job), "--out", str(tmp_path / "run"), *words, "--to", "fit_student"]) == 0
    teacher = json.loads((tmp_path / "run/stages/fit_teacher/stage.json").read_text("utf-8"))["metrics"]
    assert teacher["max_length"] == 6 and 0.05 < teacher["truncated_texts"] < 1
    line = f"teacher: {teacher['truncated_texts']:.0%} of the training texts are truncated to 6 tokens"
    err = capfd.readouterr().err
    assert line in err and "(set teacher.max_length, 64 at most, or split them)" in err
    assert (f"student: reads {reads} tokens of a text, its teacher 6" in err) == (reads != 6)
    network, tokenizer = load_classifier(tmp_path / "run/stages/fit_student")
    assert tokenizer.model_max_length == network.config.max_position_embeddings == reads


def test_how_much_is_read_follows_from_the_texts(job, tmp_path, tiny_encoder_folder):
    rows = (job.parent / "train.csv").read_text("utf-8").splitlines()
    long = ["please " * 200 + row if number % 10 == 0 else row for number, row in enumerate(rows[1:])]
    (tmp_path / "train.csv").write_text("\n".join([rows[0], *long]), "utf-8")
    shutil.copy(job.parent / "test.csv", tmp_path)
    words = ["--set", "teacher.epochs=1", "--set", "data.unlabeled=[]", "--data-root", str(tmp_path)]
    for positions, reads in ((600, 256), (200, 200)):
        encoder = tiny_encoder_folder(tmp_path, positions=positions)
        run = tmp_path / str(positions)
        command = ["run", str(job), "--out", str(run), *words, "--set", f"teacher.encoder={encoder}"]
        assert main([*command, "--to", "fit_teacher"]) == 0
        teacher = json.loads((run / "stages/fit_teacher/stage.json").read_text("utf-8"))["metrics"]
        assert teacher["max_length"] == reads
        assert (teacher["truncated_texts"] > 0.05) == (reads < 256)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a path below which nothing can be written")
def test_a_home_folder_that_cannot_be_written(job, finished, tmp_path, run_distill):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    home = {"HOME": "/dev/null/home"}
    done = run_distill("run", job, "--out", run, "--from", "fit_student", environment=home)
    assert done.returncode == 0 and "/dev/null" not in done.stderr, done.stderr


def test_recipe_yaml_of_a_run_has_the_values_that_were_used_and_is_the_same_run(job, tmp_path, capfd):
    recipe, run = load_yaml(job.read_text("utf-8")), tmp_path / "run"
    del recipe["teacher"]["lr"], recipe["student"]["lr"]
    recipe["data"]["root"] = str(job.parent)
    (tmp_path / "open.yaml").write_text(dump_yaml(recipe), "utf-8")
    settings = ["--set", "teacher.epochs=1", "--set", "student.epochs=1", "--to", "fit_student"]
    command = ["run", str(tmp_path / "open.yaml"), "--out", str(run), *settings]
    assert main(command) == 0
    used = load_yaml((run / "recipe.yaml").read_text("utf-8"))
    assert (
        used["teacher"]["lr"] == 5e-5 * 768 / 32 and used["teacher"]["head_lr"] == 30 * used["teacher"]["lr"]
    )
    assert used["teacher"]["max_length"] == 64
    assert used["student"]["lr"] == pytest.approx(2e-3 * 128 / 16)
    capfd.readouterr()
    assert main(["run", str(run / "recipe.yaml"), "--out", str(run), "--to", "fit_student"]) == 0
    assert capfd.readouterr().err.count("done before") == 4
    assert load_yaml((run / "recipe.yaml").read_text("utf-8")) == used
    assert main(command) == 0
    assert capfd.readouterr().err.count("done before") == 4
    assert main([*command, "--set", "student.lr=0.004"]) == 0
    assert capfd.readouterr().err.count("done before") == 3


def test_a_command_that_fails_leaves_the_stages_of_an_earlier_one(job, finished, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(finished["folder"], run)
    command = ["run", str(job), "--out", str(run)]
    assert main([*command, "--set", "heads.intent.column=foo"]) == 2
    assert "no column 'foo'" in capfd.readouterr().err
    assert main(["report", str(run)]) == 0
    assert main(command) == 0
    assert capfd.readouterr().err.count("done before") >= 7
    assert not (run / "stages/.old").exists()
