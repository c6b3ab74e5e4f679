"""Runs whose heads are taught by teachers that know some texts only, or by none that is trained here."""

import json

import numpy as np
import pytest

import tinyheads
from distill.heads import Head
from distill.recipe.load import load_yaml
from distill.recipe.schema import Recipe
from distill.teaching import named
from teachers.base import Teacher

WORDS = {"refund": "refund", "track": "where", "thank": "love"}


class Words:
    """A teacher that looks for words, and knows no text without one of them."""

    def __init__(self, heads):
        [self.head] = [head for head in heads if head.name == "intent"]
        self.labels = {"intent": self.head.labels}
        self.digest = "words"
        self.asked = 0

    def logits(self, texts):
        self.asked += len(texts)
        rows = np.full((len(texts), len(self.head.labels)), np.nan, np.float32)
        for row, text in enumerate(texts):
            for column, label in enumerate(self.head.labels):
                if WORDS[label] in text.split():
                    rows[row] = np.where(np.arange(len(self.head.labels)) == column, 6.0, 0.0)
        return {"intent": rows}


@pytest.fixture
def recipe(job):
    settings = load_yaml(job.read_text("utf-8"))
    settings["data"]["root"] = str(job.parent)
    settings["teacher"]["epochs"], settings["student"]["epochs"] = 3, 2
    return settings


@pytest.mark.exporting
def test_answers_of_a_teacher_teach_the_encoder_and_the_student(recipe, tmp_path, monkeypatch):
    asked: list[Teacher] = []

    def teachers(recipe: Recipe, heads: list[Head]) -> list[Teacher]:
        asked.append(Words(heads))
        return asked[-1:]

    monkeypatch.setattr(named, "asked", teachers)
    result = tinyheads.run(recipe, tmp_path / "run")
    assert result.report["heads"]["intent"]["test"]["teacher"]["accuracy"] > 0.4
    [teacher] = asked
    kept = named.kept_labels(tmp_path / "run/stages/fit_teacher")
    assert kept is not None and 0 < len(kept.soft) <= teacher.asked
    trained = json.loads((tmp_path / "run/stages/fit_teacher/stage.json").read_text("utf-8"))["metrics"]
    assert trained["texts"] == 479 + 2 and "distillation" in trained["losses"]  # two of the unlabelled ones
