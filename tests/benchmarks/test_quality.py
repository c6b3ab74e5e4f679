"""The parts of benchmarks/quality.py that need no peer: the job it writes, its judge, its table."""

import importlib
import json
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.data.dataset import write_texts
from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.models.classifier import MultiHeadClassifier
from distill.recipe.load import dump_yaml
from distill.training.loop import Examples
from teachers.encoders import load_encoder

LABELLED = {"train": (0, 1, UNLABELLED, 1), "validation": (1, 0), "test": (0, 0, 1)}


@pytest.fixture
def program(pytestconfig, monkeypatch):
    """A function that imports a program of benchmarks/ by name."""
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    return importlib.import_module


@pytest.fixture
def run(tmp_path, tiny_encoder_folder):
    """What of a finished run is read: its recipe and its prepared splits."""
    folder, prepared = tmp_path / "run", tmp_path / "run" / "stages" / "prepare"
    prepared.mkdir(parents=True)
    heads = (Head("intent", "single_label", ("a", "b")), Head("flags", "multi_label", ("x", "y", "z")))
    for split, labels in LABELLED.items():
        rows = [
            {
                "text": f"{split} {i}",
                "head_intent": label,
                "head_flags": [i % 2, 1, 0] if i else [UNKNOWN] * 3,
            }
            for i, label in enumerate(labels)
        ]
        write_texts(prepared / split, rows, heads)
    (prepared / "heads.json").write_text(json.dumps([head.to_json() for head in heads]), "utf-8")
    recipe = {
        "name": "toy",
        "data": {"train": "train.csv"},
        "heads": {"intent": {"column": "intent"}, "flags": {"column": "flags", "kind": "multi_label"}},
        "teacher": {"encoder": str(tiny_encoder_folder(tmp_path))},
    }
    (folder / "recipe.yaml").write_text(dump_yaml(recipe), "utf-8")
    return folder


def record(method, **changed):
    return {
        "method": method,
        "quality": {"accuracy": 0.91234, "macro_f1": 0.9},
        "seconds": {"training": 7.4},
        "threads": 1,
        "bytes": 4_440_000,
        "texts_a_second": 12345.6,
        "batch_size": 32,
        "p50_ms": 0.512,
        "settings": "as it comes",
        "versions": {"numpy": "2.0"},
        **changed,
    }


def test_job_holds_the_rows_that_are_labelled_for_the_head(program, run, tmp_path):
    quality, measure = program("quality"), program("quality_measure")
    out = tmp_path / "out"
    out.mkdir()
    head, labels = quality.write_job(out, run, data_root=tmp_path, threads=2)
    job = measure.load_job(out)
    assert (job.head, job.labels, job.single, job.threads) == (head.name, ["a", "b"], True, 2)
    assert job.split("train") == (["train 0", "train 1", "train 3"], [0, 1, 1])
    assert labels["test"].tolist() == [0, 0, 1]


def test_job_of_another_head(program, run, tmp_path):
    quality, measure = program("quality"), program("quality_measure")
    out = tmp_path / "out"
    out.mkdir()
    quality.write_job(out, run, head="flags", data_root=tmp_path, threads=2)
    job = measure.load_job(out)
    assert not job.single
    assert job.split("validation") == (["validation 1"], [[1, 1, 0]])
    with pytest.raises(SystemExit, match="another head, kind, labels"):
        quality.write_job(out, run, head="intent", data_root=tmp_path, threads=2)
    with pytest.raises(SystemExit, match="intent, flags"):
        quality.write_job(out, run, head="flag", data_root=tmp_path, threads=2)


def test_thresholds_are_those_that_validation_asks_for(program):
    head = Head("flags", "multi_label", ("x", "y"))
    truth = np.tile([[1, 0], [0, 1]], (10, 1)).astype(np.int8)
    scores = np.where(truth == 1, -3.0, -6.0)  # right in order, and all under one half
    found = program("quality").judge(
        head, {"validation": scores, "test": scores}, {"validation": truth, "test": truth}
    )
    assert found["micro_f1"] == found["macro_f1"] == 1


def test_table_and_notes(program):
    quality = program("quality")
    taught = record("ours", seconds={"teacher": 500.0, "label": 300.2, "training": 700.0})
    lines = quality.table([record("tfidf"), taught], "single_label").splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|")
    tfidf = "TF-IDF, logistic regression | 0.9123 | 0.9000 | 4.4 | 12,346 | 0.51 ms | 7 s |  |"
    assert lines[2] == f"| {tfidf}"
    assert lines[3].startswith("| **ours** | **0.9123** |")
    assert lines[3].endswith("| **1,500 s** | **800 s** |")
    said = quality.notes([record("tfidf")])
    assert said == (
        "- TF-IDF, logistic regression: as it comes; fastest in batches of 32; 1 thread in training. "
        "numpy 2.0."
    )
    assert quality.notes([taught]) == "- ours: as it comes; fastest in batches of 32. numpy 2.0."


def test_every_method_has_a_name_and_a_program(program):
    quality, peers, own = program("quality"), program("quality_peers"), program("quality_own")
    assert list(peers.METHODS) == list(quality.PEERS)
    assert list(own.METHODS) == list(quality.OWN)
    assert list(quality.NAMES) == [*quality.PEERS, *quality.OWN]


def test_what_builds_on_another_is_trained_after_it(program, tmp_path, monkeypatch):
    quality, done = program("quality"), []
    (tmp_path / "tfidf").mkdir()
    (tmp_path / "tfidf" / "trained.json").touch()  # by a run that was stopped

    def step(out, name, peers, step, threads):
        time.sleep(0.05 if "-" not in name else 0)  # what others build on takes longer
        done.append((name, step))

    monkeypatch.setattr(quality, "_step", step)
    quality._train(tmp_path, [*quality.PEERS, "ours"], "python", threads=1, jobs=8)
    names = [name for name, _ in done]
    assert sorted(names) == sorted({*quality.PEERS, "ours"} - {"tfidf"})
    assert {step for _, step in done} == {"train"}
    for name in ("fasttext-ftz", "model2vec-int8"):
        assert names.index(name.split("-")[0]) < names.index(name)


def test_a_method_is_trained_then_measured(program, run, tmp_path):
    quality, measure = program("quality"), program("quality_measure")
    quality.write_job(tmp_path, run, data_root=tmp_path, threads=2)
    job = measure.load_job(tmp_path)

    class Model:
        files = (job.place("flat") / "weights",)

        def classify(self, texts, batch_size):
            return ["a"] * len(texts)

        def scores(self, texts):
            return np.zeros((len(texts), 2))

    def fit(job):
        (job.place("flat") / "weights").write_bytes(b"12")
        return measure.Trained({"training": 1.23}, "flat", ["numpy"])

    method = measure.Method(fit, lambda job: Model())
    measure.train(job, "flat", method)
    trained = json.loads((tmp_path / "flat" / "trained.json").read_text("utf-8"))
    assert trained == {
        "seconds": {"training": 1.2},
        "threads": 2,
        "bytes": 2,
        "settings": "flat",
        "versions": {"numpy": np.__version__},
    }
    assert np.load(tmp_path / "flat" / "scores.npz")["test"].shape == (3, 2)
    measure.measure(job, "flat", method)
    measured = json.loads((tmp_path / "flat" / "measured.json").read_text("utf-8"))
    assert measured["batch_size"] in (1, 2) and measured["texts_a_second"] > 0


def test_measures(program, tmp_path):
    measure = program("quality_measure")
    p = np.array([[0.2, 0.8], [1.0, 0.0]])
    single, several = (measure.as_logits(p, single=single) for single in (True, False))
    assert np.allclose(np.exp(single), p, atol=1e-6)
    assert np.allclose(1 / (1 + np.exp(-several)), p, atol=1e-6)
    assert measure.in_order([[0.1, 0.9]], [2, 0], 3).tolist() == [[0.9, 0.0, 0.1]]
    assert measure.chunked(lambda some: [text.upper() for text in some], ["a", "b", "c"], 2) == [
        "A",
        "B",
        "C",
    ]
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "inner" / "weights").write_bytes(b"1234")
    (tmp_path / "words").write_bytes(b"12")
    assert measure.bytes_of([tmp_path / "model", tmp_path / "words"]) == 6


def test_setfit_draws_evenly_over_single_labels(program, monkeypatch, tmp_path):
    peers, measure = program("quality_peers"), program("quality_measure")
    monkeypatch.setattr(peers, "CONTRAST_TEXTS", 6)
    train = measure.Split([str(i) for i in range(20)], [0] * 17 + [1] * 3)
    job = measure.Job(tmp_path, "h", "single_label", ["a", "b"], "", "", "", 1, 0)
    assert sorted(train.labels[i] for i in peers._spread(train, job)) == [0, 0, 0, 1, 1, 1]


def test_fasttext_reads_lines(program, tmp_path):
    fasttext, measure = program("quality_fasttext"), program("quality_measure")
    job = measure.Job(tmp_path, "h", "multi_label", ["a", "b"], "", "", "", 1, 0)
    fasttext.write_lines(job, measure.Split(["No,\nthanks!", "Well"], [[1, 1], [0, 0]]), tmp_path / "lines")
    lines = (tmp_path / "lines").read_text("utf-8").splitlines()
    assert lines == ["__label__0 __label__1 no , thanks !", "well"]


def test_textbrewer_sees_a_multi_label_head_as_two_classes_a_label(program):
    textbrewer = program("quality_textbrewer")
    heads = (Head("intent", "single_label", ("a", "b", "c")), Head("flags", "multi_label", ("x", "y")))
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    labels = torch.tensor([0, 2, UNLABELLED, 1]), torch.tensor([[1, 0], [0, 1], [UNKNOWN, UNKNOWN], [1, 1]])
    adaptors = textbrewer.Adaptors(heads)
    seen = adaptors.student((None, *labels), [student[:, :3], student[:, 3:]])
    taught = adaptors.teacher((), [teacher[:, :3], teacher[:, 3:]])["logits"]
    soft = -(taught[1].softmax(-1) * seen["logits"][1].log_softmax(-1)).sum(-1).mean()
    expected = F.binary_cross_entropy_with_logits(student[:, 3:], teacher[:, 3:].sigmoid())
    assert torch.allclose(soft, expected)
    assert torch.equal(taught[0], teacher[:, :3])
    known = [0, 1, 3]
    assert torch.allclose(seen["losses"][0], F.cross_entropy(student[known, :3], labels[0][known]))
    flags = F.binary_cross_entropy_with_logits(student[known, 3:], labels[1][known].float())
    assert torch.allclose(seen["losses"][1], flags)


def test_textbrewer_trains_on_batches_of_stored_logits(program, tmp_path, tiny_encoder_folder):
    textbrewer = program("quality_textbrewer")
    heads = (Head("intent", "single_label", ("a", "b", "c")), Head("flags", "multi_label", ("x", "y")))
    encoder, tokenizer = load_encoder(str(tiny_encoder_folder(tmp_path)))
    network = MultiHeadClassifier(encoder, heads, dropout=0.0).eval()
    texts = network.text_encoder(tokenizer, 16)(["where is my parcel", "refund", "we love the box"])
    hard = {"flags": np.array([[0, 1], [1, 0], [1, 1]], np.int8), "intent": np.array([0, 1, 2])}
    soft = {"flags": np.zeros((3, 2), np.float32), "intent": np.ones((3, 3), np.float32)}
    batches = textbrewer.Batches(Examples(texts, hard, soft), heads, size=2, seed=0)
    assert len(batches) == 2
    for batch in batches:
        logits = textbrewer.Called(network)(*batch["student"])
        seen = textbrewer.Adaptors(heads).student(batch["student"], logits)
        taught = textbrewer.Adaptors(heads).teacher(batch["teacher"], batch["teacher_cache"])
        shapes = [[z.shape for z in side["logits"]] for side in (seen, taught)]
        assert shapes[0] == shapes[1] and shapes[0][0][1:] == (3,) and shapes[0][1][1:] == (2, 2)
        assert all(loss > 0 for loss in seen["losses"])
