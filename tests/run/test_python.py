"""A run from Python: recipes as path, dict and Recipe; data as paths, data frames and data sets."""

import os
from concurrent.futures import ThreadPoolExecutor

import datasets
import pandas as pd
import pytest

import tinyheads
from distill.cli.main import main
from distill.data.in_memory import write_sources
from distill.data.sources import DataError
from distill.recipe.data_section import RecipeError
from distill.recipe.load import load_yaml
from distill.storage import RunLockedError, locked
from export import BundleError


@pytest.fixture
def values(job):
    """The small job's recipe as a dict, its data in memory, but for the unlabelled texts."""
    values = load_yaml(job.read_text("utf-8"))
    frame = pd.read_csv(job.parent / "train.csv", keep_default_na=False)
    test = datasets.Dataset.from_csv(str(job.parent / "test.csv"), keep_default_na=False)
    inbox = str(job.parent / "inbox.txt")
    values["data"] |= {"train": frame, "test": test, "unlabeled": [inbox]}
    return values


@pytest.mark.exporting
def test_a_dict_with_data_in_memory_gives_the_bundle_of_the_same_files(values, finished, tmp_path):
    result = tinyheads.run(values, tmp_path / "run")
    assert result.report["heads"] == finished["report"]["heads"]
    assert result.bundle == tmp_path / "run" / "bundle"
    assert result.classifier("where is my parcel please")["intent"]["label"] == "track"
    assert result.classifier is result.classifier
    again = tinyheads.run(values, tmp_path / "run", last="label")
    assert again.report["stage"] == "label"


def test_a_path_and_a_recipe(job, finished):
    recipe = tinyheads.load_recipe(job)
    assert isinstance(recipe, tinyheads.Recipe)
    for form in (job, str(job), recipe):
        result = tinyheads.run(form, finished["folder"])
        assert result.report["heads"] == finished["report"]["heads"]


def test_a_class_label_keeps_its_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "intent": [1, 0]}, features=features)
    written = write_sources({"train": rows, "test": "test.csv"}, tmp_path / "inputs")
    assert written["test"] == "test.csv" and written["train"].endswith("train.parquet")
    from distill.data.sources import open_source

    cells = [row.cells for row in open_source(written["train"], tmp_path).rows(["text", "intent"])]
    assert cells == [("x", "b"), ("y", "a")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name"),
        ({"data": {"trian": "x.csv"}}, "unknown key"),
        ({"nope": 1}, "nope: unknown key"),
        ({"data": None}, "data"),
        ({"data": {"train": "x.csv", "unlabeled": 3}}, "data.unlabeled"),
    ],
)
def test_invalid_values_are_refused_before_anything_is_written(values, tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        tinyheads.run({**values, **change}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_paths_and_a_frame_of_unlabelled_texts(values, job, tmp_path):
    values["data"] |= {
        "unlabeled": pd.DataFrame({"text": ["the box is late"]}),
        "test": job.parent / "test.csv",
    }
    result = tinyheads.run(values, tmp_path / "run", last="prepare")
    assert result.report["metrics"]["rows"]["unlabeled"] == 1
    with pytest.raises(BundleError):
        result.classifier  # noqa: B018


def test_a_frame_that_is_no_parquet_is_refused_in_a_line(values, tmp_path):
    values["data"]["train"] = pd.DataFrame({"text": ["a", "b"], "intent": [1, "x"], "flags": ["", ""]})
    with pytest.raises(DataError, match=r"data.train: cannot be written as parquet: .*\(give one type"):
        tinyheads.run(values, tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"[]", b"a: 1", b"\xff\xfe", b"name: [", None])
def test_a_damaged_recipe_in_the_folder_is_written_again(job, tmp_path, content):
    (tmp_path / "stages").mkdir()
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    tinyheads.run(job, tmp_path, last="prepare")
    assert load_yaml((tmp_path / "recipe.yaml").read_text("utf-8"))["name"] == "toy"


def test_the_run_of_another_recipe_is_left_alone(job, tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "recipe.yaml").write_text("name: other")
    with pytest.raises(RecipeError, match=r"is the run of 'other', not of 'toy' \(choose another, or delete"):
        tinyheads.run(job, tmp_path, last="prepare")


def test_from_a_stage_needs_those_before_it(job, tmp_path):
    with pytest.raises(RecipeError, match=r"--from label: .* holds no finished prepare \(run it without"):
        tinyheads.run(job, tmp_path / "run", first="label")


def test_a_second_start_in_the_folder_of_a_run_ends_at_once(job, finished, capsys):
    folder = finished["folder"]
    before = (folder / "recipe.yaml").read_bytes()
    with locked(folder):
        for command in (["run", str(job), "--set", "student.lr=0.5", "--out"], ["report"]):
            assert main([*command, str(folder)]) == 2
            assert f"distill: {folder}: process {os.getpid()} on " in capsys.readouterr().err
        with pytest.raises(RunLockedError):
            tinyheads.run(job, folder)
        assert tinyheads.Classifier.load(folder / "bundle")("where is my parcel please")
    assert (folder / "recipe.yaml").read_bytes() == before


def test_runs_in_two_threads(job, tmp_path):
    """In one folder the second is refused; in two folders they take turns."""
    with ThreadPoolExecutor(4) as pool:
        places = [tmp_path / name for name in "aab"]
        started = [pool.submit(tinyheads.run, job, place, last="prepare") for place in places]
        results = [future.exception() for future in started]
    assert sum(isinstance(error, RunLockedError) for error in results) <= 1
    assert all(error is None or isinstance(error, RunLockedError) for error in results)


def test_a_folder_that_is_no_run_is_left_alone(values, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="holds something else than a run"):
        tinyheads.run(values, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RecipeError, match=r"no stage 'lable'.*did you mean 'label'"):
        tinyheads.run(values, tmp_path, last="lable")
