"""benchmarks/text_length.py: documents of a label's texts, judged at each length."""

import csv
import importlib
import sys

import pytest


def test_documents_are_of_one_label_and_judged_at_each_length(
    pytestconfig, monkeypatch, tmp_path, tiny_encoder_folder, capsys
):
    words = {"praise": "we love the box", "track": "where is my parcel", "rare": "refund my order"}
    for name in ("train", "test"):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(["text", "intent"])
            for number in range(41):
                out.writerows((f"{text} {number % 3}", label) for label, text in words.items())
                words.pop("rare", None)
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    program = importlib.import_module("text_length")
    files = [str(tmp_path / "train.csv"), str(tmp_path / "test.csv")]
    encoder = str(tiny_encoder_folder(tmp_path, positions=600))
    monkeypatch.setattr(sys, "argv", ["", *files, "intent", "--join", "4", "--encoder", encoder])
    program.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 texts to learn from, 20 to judge")  # 41 texts a label make ten of four
    rows = [line.split("|")[1:-1] for line in lines[4:]]
    assert [row[0].split()[0] for row in rows] == ["128", "256", "512", "all,"]
    assert "(the default here)" in rows[0][0]
    assert float(rows[-1][2]) == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["nope.csv", "nope.csv", "intent"], "nope.csv: No such file"),
        (["some.csv", "some.csv", "intend"], "no column 'intend'"),
        (["some.csv", "some.csv", "intent"], "too few documents"),
    ],
)
def test_faults_are_told_in_a_line(
    pytestconfig, monkeypatch, tmp_path, tiny_encoder_folder, capsys, words, message
):
    (tmp_path / "some.csv").write_text("text,intent\nwe love the box,praise\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    encoder = str(tiny_encoder_folder(tmp_path))
    monkeypatch.setattr(sys, "argv", ["", *words, "--encoder", encoder])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module("text_length").main()
    assert caught.value.code == 2 and message in capsys.readouterr().err
