import re

import pytest

from distill.compare.table import front, ordered, pareto, quality_text, table_markdown, table_text
from tests.distill.compare.made_up import comparison


def test_pareto_keeps_what_nothing_beats():
    # cost, quality
    assert pareto([(1, 0.8), (2, 0.9), (3, 0.85), (0.5, 0.7), (2, 0.88)]) == [3, 0, 1]


def test_pareto_equal_points_are_both_on_it_and_a_tie_in_one_is_not():
    assert pareto([(1, 0.8), (1, 0.8), (1, 0.7), (2, 0.8)]) == [0, 1]


def test_pareto_without_cost_or_quality():
    assert pareto([(None, 0.9), (1, None), (None, None)]) == []
    assert pareto([]) == []


def test_rows_are_ordered_by_quality_then_latency_and_failed_rows_are_last():
    table = comparison()
    table["rows"][4]["quality"]["topic"]["value"] = table["rows"][7]["quality"]["topic"]["value"]
    rows = ordered(table)
    assert [row["candidate"] for row in rows[:2]] == ["bert-small", "MiniLM-L6"]
    latencies = [row["latency_ms"]["p50"] for row in rows if not row["quality"] and not row["failed"]]
    assert latencies == sorted(latencies)
    assert not any(row["failed"] for row in rows)


def test_a_candidate_of_which_one_seed_failed_keeps_its_row():
    table = comparison(seeds=3)
    table["rows"][7]["failed"] = "killed by SIGKILL"
    text = table_text(table)
    assert text.startswith("candidate") and text.splitlines()[1].startswith("MiniLM-L6")
    assert "failed: MiniLM-L6, fine-tuned: killed by SIGKILL" in text


def test_the_front_leaves_out_what_has_no_quality():
    table = comparison(heads=3, seeds=2)
    names = {table["rows"][index]["candidate"] for index in front(table)}
    assert names == {"TF-IDF + logistic regression", "tiny", "mini", "small", "MiniLM-L6"}


def test_a_head_without_labelled_test_texts_does_not_count():
    table = comparison(heads=2)
    best = ordered(table)[0]["candidate"], front(table)
    table["head_names"].append("untested")
    table["metrics"]["untested"], table["texts"]["test"]["untested"] = "accuracy", 0
    assert (ordered(table)[0]["candidate"], front(table)) == best and best[1]


def test_the_text_is_aligned_and_names_what_failed_and_what_has_no_weights():
    text = table_text(comparison(heads=3, seeds=3))
    lines = text.splitlines()
    assert all(len(line) <= len(lines[0]) for line in lines[:14])
    assert lines[0].index("how") == lines[1].index("fine-tuned")
    line = next(line for line in lines if line.startswith("mini "))
    assert re.search(r"0\.9\d\d ±0\.006 \[0\.9\d\d 0\.9\d\d\]", line)
    assert "0.94 / 1.22" in line and "yes" in line and line.endswith("*")
    assert "≈2,890" in text and "no weights" in text
    assert "failed: bert-large-uncased, fine-tuned: killed by the system: out of memory" in text


def test_one_seed_has_no_spread():
    row = comparison(seeds=1)["rows"][7]
    assert re.fullmatch(r"0\.9\d\d ±0\.006", quality_text(row, "topic"))


def test_a_candidate_that_failed_is_not_said_to_lack_weights():
    row = comparison()["rows"][0] | {"quality": {}, "weights": False}
    assert quality_text(row | {"failed": None}, "topic") == "no weights"
    assert quality_text(row | {"failed": "killed by SIGKILL"}, "topic") == "–"


def test_without_budget_nothing_is_said_to_fit():
    table = comparison()
    table["budget"] = {"ms": None, "mb": None}
    assert "fits" not in table_text(table)


@pytest.mark.parametrize("key", ["latency_ms", "bytes", "throughput", "fit_seconds", "train_rss_bytes"])
def test_what_was_not_measured_is_a_dash(key):
    table = comparison()
    for row in table["rows"]:
        row[key] = None
    assert "–" in table_text(table) and "nan" not in table_markdown(table)


def test_columns_of_a_gpu_appear_where_there_is_one():
    table = comparison()
    assert "GPU" not in table_markdown(table)
    table["rows"][0] |= {"gpu_throughput": 5210.0, "gpu_batch_size": 512}
    assert "5,210 @512" in table_markdown(table)


def test_names_are_text_in_markdown_and_on_a_terminal():
    table = comparison()
    table["rows"][7]["candidate"] = "a|b\n\x1b[31m<b>*c*</b>"
    assert "\x1b" not in table_text(table)
    (line,) = [line for line in table_markdown(table).splitlines() if "a\\|b" in line]
    assert "\\<b\\>\\*c\\*" in line
