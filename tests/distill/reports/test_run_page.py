import json
import re

import pytest

from distill.reports.report import write_report
from distill.storage import read_sealed, write_sealed
from tests.distill.reports.example import write_run


def shown(page: str) -> str:
    """The words of a page, without its style."""
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page.split("</style>")[1]))


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path)


def test_the_page_says_what_was_distilled_from_what(folder):
    report = write_report(folder)
    words = shown((folder / "report.html").read_text("utf-8"))
    assert "The fine-tuned encoder toy (4.32 M parameters, 6 layers of width 384)" in words
    assert "taught a student (4.32 M parameters, 2 layers of width 128)" in words
    assert "Initialisation of the student: pretrained student: toy." in words
    assert "12 rows dropped: empty text; first toy:3" in words
    assert "20% of the training texts are truncated to 128 tokens" in words
    assert report["student"]["layers"] == 2 and report["teacher"]["names"] == ["toy"]


def test_settings_are_those_that_were_used(folder):
    report = write_report(folder)
    assert (
        report["settings"]["student"]["layers"] == 2 and report["settings"]["student"]["network"] == "heads"
    )
    assert report["settings"]["export"]["max_length"] == 128
    assert report["distillation"] == {key: {"loss": "kl", "temperature": 1.0} for key in ("intent", "flags")}
    words = shown((folder / "report.html").read_text("utf-8"))
    assert "peak learning rate of the heads 0.003 –" in words and "student.layers 2" in words
    assert "None" not in words and "null" not in words


def test_a_student_may_read_fewer_tokens_than_its_teacher(tmp_path):
    write_run(tmp_path)
    (tmp_path / "stages/fit_student/tokenizer_config.json").write_text('{"model_max_length": 64}', "utf-8")
    report = write_report(tmp_path)
    assert report["teacher"]["max_length"] == 128 and report["student"]["max_length"] == 64
    assert report["settings"]["export"]["max_length"] == 64
    assert "tokens read of a text 128 64" in shown((tmp_path / "report.html").read_text("utf-8"))


def test_every_figure_says_which_texts_it_is_on(folder):
    write_report(folder)
    page = (folder / "report.html").read_text("utf-8")
    figures = re.findall(r"<figure.*?</figure>", page)
    assert len(figures) == 8  # two curves a network, three of the single_label head and one of the other
    assert all(
        re.search(r"labelled test texts|5,000 texts|is kept", shown(f"</style>{one}")) for one in figures
    )
    assert "1,066 of 1,200" in page and "of all 1,200 test texts" in page
    assert "Of all 1,200 test texts; the student is int8." in page
    assert "stages/check/label_review.csv" in page


def test_a_page_of_a_refused_run_begins_with_the_refusal(tmp_path):
    write_run(tmp_path, refused=["int8: head 'intent' drops"])
    report = write_report(tmp_path)
    words = shown((tmp_path / "report.html").read_text("utf-8"))
    refusal = "Refused: no bundle was published int8: head &#x27;intent&#x27; drops"
    assert words.index(refusal) < words.index("taught a student")
    assert report["analysis"]["heads"] and "texts per second" not in words


@pytest.mark.parametrize(
    "analysis", [None, "{", "[1]", '{"heads": [1]}', '{"heads": {"intent": {"labelled": "x"}}}', "NaN", "{}"]
)
def test_a_missing_or_damaged_analysis_makes_the_page_say_less(folder, analysis):
    path = folder / "stages/check/analysis.json"
    path.unlink()
    if analysis is not None:
        path.write_text(analysis, "utf-8")
    report = write_report(folder)
    assert not (report["analysis"] or {}).get("heads")
    words = shown((folder / "report.html").read_text("utf-8"))
    assert "Training losses of the student" in words and "Reliability" not in words
    json.loads((folder / "report.json").read_text("utf-8"), parse_constant=pytest.fail)


def test_what_older_runs_lack_is_left_out(folder):
    (folder / "data_report.json").write_text('{"dropped": [1]}', "utf-8")
    (folder / "stages/fit_student/config.json").unlink()
    for side in ("teacher", "student"):
        path = folder / "stages" / f"fit_{side}" / "stage.json"
        record = read_sealed(path)
        for key in ("losses", "validation_history", "texts"):
            del record["metrics"][key]
        write_sealed(path, record)
    write_report(folder)
    page = (folder / "report.html").read_text("utf-8")
    assert ">mean</text>" in page and "Training losses" not in page


def test_stages_are_in_their_order_in_a_copy_too(folder):
    names = [path.parent.name for path in folder.glob("stages/*/stage.json")]
    for name in sorted(names, reverse=True):
        (folder / "stages" / name / "stage.json").touch()
    assert [*write_report(folder)["stages"]][2:] == ["fit_student", "export", "check", "bundle"]
