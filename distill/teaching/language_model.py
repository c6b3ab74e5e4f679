"""The language model of a recipe as a teacher: what it is asked, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from distill.heads import Head
from distill.models.base import Array
from distill.recipe.schema import Job
from distill.run import progress
from teachers.llm.records import Counts
from teachers.llm.settings import AskedHead, LlmSettings
from teachers.llm.teacher import LlmTeacher
from teachers.soft_labels import text_digests


class LanguageModel:
    """A language model as a teacher (`teachers.base.Teacher`): one process asks, all read the answers.

    Attributes:
        setting: Of the recipe that names it.
        name: Of the model.
        kind: In reports.
        llm: What asks.
        digest: Of model, questions and route.
        labels: The labels of each head that it is asked about.
        counts: Of all texts so far, each once.
    """

    setting, kind = "teacher.llm", "language model"

    def __init__(self, llm: LlmTeacher) -> None:
        self.llm, self.digest, self.labels = llm, llm.digest, llm.labels
        self.name, self.counts = llm.settings.model, Counts()
        self._asked: set[Any] = set()

    def logits(self, texts: Sequence[str]) -> Mapping[str, Array]:
        """The logits of each head, float32 `[texts, labels]`; NaN where the model gave no valid answer.

        Raises:
            LlmError: As in `LlmTeacher.ask`.
        """
        digests = text_digests(texts).tolist()
        new = {key: text for key, text in zip(digests, texts, strict=True) if key not in self._asked}
        state = PartialState()
        if new and state.is_main_process:
            with progress(len(new), "ask", "text") as bar:
                self.counts.add(self.llm.ask([*new.values()], bar.update))
        state.wait_for_everyone()
        self._asked.update(new)
        return self.llm.logits(texts)

    def summary(self) -> str:
        """What came of the asking, in a line."""
        found = self.counts
        line = f"{found.answered:,} of {found.texts:,} texts are answered, {found.cached:,} of them before"
        if found.dropped:
            what = f"{found.dropped:,} had answers outside the choice"
            line += f"; {what} (distill ask --dropped asks them again)"
        if found.failed:
            line += f"; {found.failed:,} got no answer (distill ask asks them again)"
        return f"{line}; {found.requests:,} requests"

    def about(self) -> dict[str, Any]:
        """What it is and what came of the asking, for the record of a stage."""
        settings = self.llm.settings
        return {
            "model": settings.model,
            "server": settings.host,
            "route": self.llm.route,
            "heads": [*self.labels],
            **asdict(self.counts),
        }


def language_model(recipe: Job, heads: Sequence[Head]) -> LanguageModel | None:
    """The language model that a recipe names, None if it names none.

    Raises:
        LlmError: Its cache cannot be opened.
    """
    if not (llm := getattr(recipe.teacher, "llm", None)):
        return None
    taught = getattr(recipe.teacher, "merge", None) or {}
    questions = llm.heads or {head.name: None for head in heads if head.name not in taught}
    asked = [
        AskedHead(head.name, head.kind, head.labels, head.descriptions, questions[head.name])
        for head in heads
        if head.name in questions
    ]
    settings = llm.model_dump(exclude={"heads", "terms", "cache"})
    folder = llm.cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tinyheads", "llm")
    return LanguageModel(LlmTeacher(LlmSettings(**settings, cache=Path(folder)), asked))
