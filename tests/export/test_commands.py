"""`predict`, `evaluate` and `bench` on files, with the base install alone."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest

from distill.cli.main import main
from export.bundle.files import write_bundle

ROWS = [
    ("where is my parcel", "track", "urgent"),
    ("cancel the order\nplease", "cancel", "urgent|späte"),
    ("", "thank", ""),
    ("  thanks ", "", "späte"),
    ("refund, now", "refund", "none"),
    ("Where is it", "Track\u200b", "spa\u0308te"),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The rows as a csv, a tsv and a jsonl file, and the texts of one line as a txt file."""
    names = ("body", "intent", "flags")
    for name, separator in (("a.csv", ";"), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter=separator).writerows([names, *ROWS])
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "a.txt").write_text("where is my parcel\n\nthanks\n", "utf-8")
    return tmp_path


def call(capfd: Any, *words: object) -> tuple[int, str, str]:
    code = main([*map(str, words)])
    return code, *capfd.readouterr()


def complaint(capfd: Any, *words: object) -> str:
    code, out, err = call(capfd, *words)
    assert code == 2 and out == "" and err.count("\n") == 1, (out, err)
    return err


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_predict_answers_every_row_in_order(bundle, classifier, files, capfd, name) -> None:
    code, out, err = call(
        capfd, "predict", bundle, files / name, "--text-column", "body", "--heads", "intent"
    )
    found = [json.loads(line) for line in out.splitlines()]
    texts = [row[0].strip() for row in ROWS]
    assert (code, err) == (0, "") and [answer.pop("text") for answer in found] == texts
    assert found == classifier(texts, heads=["intent"])
    assert (
        call(capfd, "predict", bundle, "--text-column", "body", files / name, "--heads", "intent")[1] == out
    )


def test_predict_reads_the_lines_of_a_text_file(bundle, files, capfd) -> None:
    _, out, _ = call(capfd, "predict", bundle, files / "a.txt", "--text-column", "text")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["where is my parcel", "thanks"]


def test_predict_takes_thresholds(bundle, classifier, capfd) -> None:
    words = ("predict", bundle, "thanks", "--threshold")
    for options, thresholds in (
        (("flags=0",), {"flags": 0}),
        (("intent=1", "--no-abstain"), {"intent": 1}),
        (("flags.urgent=0", "--threshold", "flags.späte=1"), {"flags": {"urgent": 0, "späte": 1}}),
    ):
        code, out, _ = call(capfd, *words, *options)
        assert code == 0
        assert json.loads(out) == {"text": "thanks", **classifier("thanks", thresholds=thresholds)}
        assert ('"label": null' in out) is ("intent" in thresholds)
    for options, problem in {
        ("flags",): "--threshold: expected HEAD=NUMBER or HEAD.LABEL=NUMBER, got 'flags'",
        ("flags=",): "expected HEAD=NUMBER",
        ("=0.3",): "expected HEAD=NUMBER",
        ("flags=high",): "got 'flags=high'",
        ("flags=1.5",): "thresholds: 'flags': must be a number from 0 to 1, got 1.5",
        ("flag=0.5",): "unknown head 'flag', expected one of ['intent', 'flags'] (did you mean 'flags'?)",
        ("flags.urgnt=0.5",): "did you mean 'urgent'?",
        ("flags=0.5", "--top-k", 1): "thresholds: do not apply to lists of labels",
        ("flags=0.5", "--threshold", "flags=0.6"): "--threshold: flags has two thresholds (keep one)",
        ("flags=0.5", "--threshold", "flags.urgent=0.6"): "--threshold: flags.urgent has two thresholds",
        ("flags.urgent=0.5", "--threshold", "flags=0.6"): "--threshold: flags has two thresholds",
    }.items():
        assert problem in complaint(capfd, *words, *options)


def test_columns_are_joined_as_in_training(bundle, classifier, files, capfd) -> None:
    words = ("--text-column", "body", "--text-column", "intent")
    _, out, _ = call(capfd, "predict", bundle, files / "a.csv", *words)
    found = [json.loads(line) for line in out.splitlines()]
    texts = ["\n".join(filter(None, map(str.strip, row[:2]))) for row in ROWS]
    assert [answer.pop("text") for answer in found] == [text.strip("\u200b") for text in texts]
    assert found == classifier(texts)
    words = ("--text", "body", "--text", "flags", "--heads", "intent", "--json")
    code, out, _ = call(capfd, "evaluate", bundle, files / "a.csv", *words)
    assert code == 0 and json.loads(out)["texts"] == {"intent": 2}


def test_predict_streams(bundle, tmp_path, capfd) -> None:
    """What comes before an invalid row is answered."""
    rows = [json.dumps({"text": f"order {i}"}) for i in range(5000)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"text": ["no"]}']), "utf-8")
    code, out, err = call(capfd, "predict", bundle, tmp_path / "a.jsonl", "--text-column", "text")
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    assert code == 2 and texts == [f"order {i}" for i in range(len(texts))] and len(texts) >= 4000
    assert "a.jsonl:5001: text is a list or an object" in err


def test_predict_asks_about_a_file(bundle, files, capfd) -> None:
    problem = complaint(capfd, "predict", bundle, files / "a.csv")
    assert f"{files / 'a.csv'}: is a file" in problem and "did you mean --text-column NAME" in problem
    assert call(capfd, "predict", bundle, "no.csv")[0] == 0  # which is no file, so it is a text
    assert call(capfd, "predict", bundle, "x" * 5000)[0] == 0
    problem = complaint(capfd, "predict", bundle, files / "a.csv", "b.csv", "--text-column", "body")
    assert "expected one file, got 2" in problem
    problem = complaint(capfd, "predict", bundle, files / "a.csv", "--text-column", "bodi")
    assert "no column 'bodi' (did you mean 'body'?), the columns are: 'body', 'intent', 'flags'" in problem
    assert "no.csv" in complaint(capfd, "predict", bundle, "no.csv", "--text-column", "body")
    (files / "bytes.csv").write_bytes("body\nfine\nder Käse schmeckt\n".encode("cp1252"))
    code, _, err = call(capfd, "predict", bundle, files / "bytes.csv", "--text-column", "body")
    assert code == 2 and "bytes.csv:3: undecodable bytes" in err and "probably cp1252" in err


def test_a_byte_order_mark_on_stdin_is_no_text(bundle) -> None:
    command = [sys.executable, "-m", "distill.cli.main", "predict", str(bundle)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, input=b"\xef\xbb\xbfthanks\r\n", capture_output=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert json.loads(done.stdout)["text"] == "thanks"


def test_evaluate_counts_labelled_texts_and_names_unknown_labels(bundle, classifier, files, capfd) -> None:
    code, out, err = call(capfd, "evaluate", bundle, files / "a.csv", "--text", "body", "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"] == 5
    assert found["dropped"] == {"empty text": 1} and "dropped 1 row: empty text; first" in err
    assert found["texts"] == {"intent": 2, "flags": 4}
    assert found["unknown_labels"] == {"intent": {"refund": 1, "Track": 1}, "flags": {"none": 1}}
    right = [classifier.predict_intent(text)["label"] == label for text, label, _ in ROWS[:2]]
    assert found["heads"]["intent"]["accuracy"] == np.mean(right)
    code, out, _ = call(capfd, "evaluate", bundle, files / "a.csv", "--text", "body")
    assert "intent (2 of 5 texts labelled): accuracy" in out
    low, high = found["analysis"]["intent"]["intervals"][found["variant"]]
    assert f"(95 % {low:.4f} to {high:.4f}), macro_f1" in out and low <= np.mean(right) <= high
    assert "intent: unlabelled, as the bundle does not know: 'refund' (1), 'Track' (1)" in out


def test_evaluate_shows_the_labels_that_it_answers_worst(
    bundle, classifier, files, capfd, monkeypatch
) -> None:
    value = json.loads(call(capfd, "evaluate", bundle, files / "a.csv", "--text", "body", "--json")[1])
    classes = value["analysis"]["intent"]["classes"]
    assert [row["label"] for row in classes] != [] and {row["support"] for row in classes} >= {0, 1}
    out = call(capfd, "evaluate", bundle, files / "a.csv", "--text", "body")[1]
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["label", "precision", "recall", "f1", "texts", "predicted"]
    for line, row in zip(lines[2:], classes, strict=False):
        shares = ["-" if row[x] is None else f"{row[x]:.4f}" for x in ("precision", "recall", "f1")]
        assert line == [row["label"], *shares, str(row["support"]), str(row["predicted"])]
    header = next(line for line in lines if "average" in line)
    assert header == ["label", "precision", "recall", "f1", "average", "precision", "texts", "predicted"]
    flags = value["analysis"]["flags"]["classes"]
    assert lines[lines.index(header) + 1][4] == f"{flags[0]['average_precision']:.4f}"
    monkeypatch.setattr("distill.cli.bundle.CLASSES", 1)
    out = call(capfd, "evaluate", bundle, files / "a.csv", "--text", "body")[1]
    assert out.splitlines()[3] == f"  {len(classes) - 1} more"


def test_evaluate_writes_a_page(bundle, files, capfd, tmp_path, run_blocked) -> None:
    page, words = tmp_path / "page.html", ("--text", "body", "--report")
    page.write_text("an earlier one", "utf-8")
    code, out, _ = call(capfd, "evaluate", bundle, files / "a.csv", *words, page)
    assert code == 0 and out.endswith(f"{page}: written\n")
    shown = page.read_text("utf-8")
    assert "2 of 5 texts are labelled for this head" in shown and "where is my parcel" in shown
    assert shown.count("average precision") == 2  # of all labels, and of each
    assert "Confident errors" in shown and shown.count("<h2") == 2 and "agree" not in shown
    command = ["evaluate", str(bundle), str(files / "a.csv"), *words, str(page), "--json"]
    done = run_blocked(f"from distill.cli.main import main\nraise SystemExit(main({command}))")
    assert done.returncode == 0 and json.loads(done.stdout)["report"] == str(page), done.stderr


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (".", "is a folder"),
        ("folder.html", "is a folder"),
        ("a.csv", "is no page, expected the path of a .html file"),
        ("missing/page.html", "there is no folder"),
        ("a.csv/page.html", "there is no folder"),
    ],
)
def test_evaluate_refuses_a_page_before_it_measures(bundle, files, capfd, target, problem) -> None:
    (files / "folder.html").mkdir()
    before = (files / "a.csv").read_bytes()
    err = complaint(capfd, "evaluate", bundle, files / "no.csv", "--report", files / target)
    assert "--report" in err and problem in err
    assert (files / "a.csv").read_bytes() == before and not [*(files / "folder.html").iterdir()]


def test_evaluate_speaks_of_its_own_options(bundle, files, capfd) -> None:
    code, _, err = call(capfd, "evaluate", bundle, files / "a.csv")
    assert code == 2 and "no column 'text' for the texts" in err and "(name it with --text)" in err
    (files / "b.csv").write_text("text;intent\na;refund\nb;other\n", "utf-8")
    problem = complaint(capfd, "evaluate", bundle, files / "b.csv")
    assert "no column 'flags' for head 'flags'" in problem and "--heads" in problem
    problem = complaint(capfd, "evaluate", bundle, files / "b.csv", "--heads", "intent")
    assert "no row has a label that the bundle knows, its labels are 'other', 'refund'" in problem
    assert "did you mean 'intent'" in complaint(
        capfd, "evaluate", bundle, files / "b.csv", "--heads", "intend"
    )
    (files / "c.csv").write_text("text;intent\n;track\n", "utf-8")
    everything = [err, problem, call(capfd, "evaluate", bundle, files / "c.csv", "--heads", "intent")[2]]
    for word in ("recipe", "data_report", "train", "Traceback"):
        assert not any(word in line for line in everything)


@pytest.mark.parametrize(
    "reads",
    [
        "x",
        [],
        {"heads": []},
        {"heads": {"intent": 1}},
        {"heads": {"intent": {"column": None}}},
        {"heads": {"intent": {"separator": ""}}},
        {"heads": {"intent": {"columns": "ab"}}},
        {"heads": {"intent": {"columns": [], "column": 5}}},
        {"heads": {"intent": {"labels": 3}}},
        {"heads": {"intent": {"labels": [3]}}},
    ],
)
def test_a_manifest_that_does_not_say_how_labels_are_read(
    manifest, contents, tmp_path, files, capfd, reads
) -> None:
    write_bundle(tmp_path / "bundle", replace(manifest, details={"reads": reads}), contents)
    problem = complaint(capfd, "evaluate", tmp_path / "bundle", files / "a.csv", "--text", "body")
    assert re.search(r"manifest\.json: reads: (head 'intent' )?is invalid", problem)


@pytest.mark.parametrize(
    ("key", "value"), [("text", []), ("text", [1]), ("encoding", "hex"), ("encoding", 3)]
)
def test_a_manifest_that_does_not_say_how_texts_are_read(
    manifest, contents, tmp_path, files, capfd, key, value
) -> None:
    write_bundle(tmp_path / "bundle", replace(manifest, details={"reads": {key: value}}), contents)
    problem = complaint(capfd, "evaluate", tmp_path / "bundle", files / "a.csv")
    assert f"manifest.json: reads: {key} is invalid" in problem


def test_evaluate_reads_texts_as_the_run_did(manifest, contents, tmp_path, capfd) -> None:
    details = {"reads": {"text": ["title", "body"], "encoding": "cp1252"}}
    write_bundle(tmp_path / "bundle", replace(manifest, details=details), contents)
    rows = "title;body;intent;flags\nwhere is;my parcel;track;urgent\n;größe;cancel;späte\n"
    found = []
    for encoding in ("cp1252", "utf-8"):
        (tmp_path / "a.csv").write_text(rows, encoding)
        code, out, _ = call(capfd, "evaluate", tmp_path / "bundle", tmp_path / "a.csv", "--json")
        assert code == 0 and json.loads(out)["unknown_labels"] == {}
        found.append(json.loads(out))
    assert found[0] == found[1] and found[0]["texts"] == {"intent": 2, "flags": 2}


def test_predict_reads_a_file_in_the_encoding_of_the_run(manifest, contents, tmp_path, capfd) -> None:
    details = {"reads": {"encoding": "cp1252"}}
    write_bundle(tmp_path / "bundle", replace(manifest, details=details), contents)
    (tmp_path / "a.csv").write_text("body\nder Käse schmeckt\n", "cp1252")
    code, out, _ = call(capfd, "predict", tmp_path / "bundle", tmp_path / "a.csv", "--text-column", "body")
    assert code == 0 and json.loads(out)["text"] == "der Käse schmeckt"


def test_bench_measures_texts_and_not_lines_of_csv(bundle, files, capfd, monkeypatch) -> None:
    from export.runtime import benchmark

    seen: list[str] = []
    measure = benchmark.bench
    monkeypatch.setattr(
        benchmark, "bench", lambda c, texts, **options: (seen.extend(texts), measure(c, texts, rounds=1))[1]
    )
    assert call(capfd, "bench", bundle, "--texts", files / "a.csv", "--text-column", "body")[0] == 0
    assert seen == [row[0].strip() for row in ROWS]
    assert "--text-column" in complaint(capfd, "bench", bundle, "--texts", files / "a.csv")


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "a.csv", "--text-column", "body"],
        ["predict", "a.jsonl", "--text-column", "body"],
        ["predict", "a.txt", "--text-column", "text"],
        ["evaluate", "a.tsv", "--text", "body"],
        ["evaluate", "a.jsonl", "--text", "body", "--heads", "intent"],
        ["bench", "--texts", "a.txt"],
    ],
)
def test_files_need_no_extra(bundle, files, run_blocked, words) -> None:
    words = [words[0], str(bundle), *words[1:]]
    code = f"from distill.cli.main import main\nraise SystemExit(main({words!r}))"
    done = run_blocked(code, files)
    assert done.returncode == 0 and done.stdout, done.stderr
    block = (
        "import sys\nfor name in ('pyarrow', 'pandas', 'accelerate', 'starlette'): sys.modules[name] = None\n"
    )
    assert run_blocked(block + code, files).returncode == 0


@pytest.mark.parametrize("words", [["predict", "--text-column", "text"], ["evaluate"]])
def test_a_parquet_file_names_the_extra(bundle, files, run_blocked, words) -> None:
    (files / "a.parquet").write_bytes(b"PAR1" * 9)
    words = [words[0], str(bundle), "a.parquet", *words[1:]]
    done = run_blocked(f"from distill.cli.main import main\nraise SystemExit(main({words!r}))", files)
    assert done.returncode == 2 and "pip install 'tinyheads[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_workbook_needs_its_own_extra_alone(bundle, files, run_blocked) -> None:
    book = openpyxl.Workbook()
    for row in [["body"], ["we love it"]]:
        book.active.append(row)
    book.save(files / "a.xlsx")
    words = ["predict", str(bundle), "a.xlsx", "--text-column", "body"]
    code = f"from distill.cli.main import main\nraise SystemExit(main({words!r}))"
    done = run_blocked(code, files)
    assert done.returncode == 0 and json.loads(done.stdout)["text"] == "we love it", done.stderr
    done = run_blocked(f"import sys\nsys.modules['openpyxl'] = None\n{code}", files)
    assert done.returncode == 2 and "pip install 'tinyheads[excel]'" in done.stderr
