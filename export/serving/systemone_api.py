"""`/v1/systemone`: typed questions about a state, with a probability for every allowed answer.

A `choice` has options, a `noul` is true or false, a `score` has ordered levels. The state is the text, the
instructions of a question are the hypothesis, and its options are the labels that a packed network scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.bundle.manifest import PACKED, SINGLE_LABEL, Head, Manifest
from export.runtime.probabilities import Floats, softmax
from export.serving.request import as_json, check_labels, check_length, check_name, to_json, unprocessable
from export.serving.settings import Settings

CHOICE, NOUL, SCORE = TYPES = ("choice", "noul", "score")
MAX_QUESTIONS = 64
MAX_OPTIONS = 255
LEVELS = 2, 10
_KEYS = ("model", "state", "questions")
_QUESTION_KEYS = ("type", "instructions", "criteria")
_OUTCOMES = ("true", "false")


@dataclass(frozen=True)
class Question:
    """A question about the state.

    Attributes:
        id: key of the question and of its answer.
        type: `choice`, `noul` or `score`.
        labels: descriptions of the options, by name, or the levels of a score.
        hypothesis: the instructions. None selects the hypothesis of the head.
        legend: the levels of a score as the request has them.
    """

    id: str
    type: str
    labels: dict[str, Any] | list[str]
    hypothesis: str | None
    legend: list[Any]

    @property
    def where(self) -> str:
        """What a message about the question begins with."""
        return f"questions: {self.id[:100]!r}"

    def answer(self, logits: Floats) -> dict[str, Any]:
        """The answer, from the calibrated logits of the options."""
        shares = softmax(logits).tolist()
        if self.type == NOUL:
            return {"type": NOUL, "noul": shares[0]}
        best, even = max(shares), 1 / len(shares)
        confidence = (best - even) / (1 - even) if len(shares) > 1 else 1.0
        if self.type == CHOICE:
            options = dict(zip(self.labels, shares, strict=True))
            return {
                "type": CHOICE,
                "choice": max(options, key=options.__getitem__),
                "probabilities": options,
                "confidence": confidence,
            }
        return {
            "type": SCORE,
            "score": sum(level * share for level, share in enumerate(shares)),
            "probabilities": {str(level): share for level, share in enumerate(shares)},
            "confidence": confidence,
            "legend": {str(level): text for level, text in enumerate(self.legend)},
        }


@dataclass(frozen=True)
class SystemOneRequest:
    """The body of a request. The name of the model and the labels are not checked yet."""

    text: str
    questions: list[Question]
    model: str | None


def scoring_head(manifest: Manifest) -> Head:
    """The head that scores the options: the first single_label head, or else the first.

    Raises:
        RequestError: 422 if the bundle has fixed labels.
    """
    if manifest.kind != PACKED:
        problem = "has fixed labels, expected a packed bundle (train network: packed)"
        raise unprocessable(f"model: {manifest.name!r} {problem}", "labels")
    return next((head for head in manifest.heads if head.kind == SINGLE_LABEL), manifest.heads[0])


def systemone_response(
    model: str, questions: Sequence[Question], logits: Sequence[Floats], tokens: int
) -> dict[str, Any]:
    """The response, from the calibrated logits of each question.

    The labels are all that the network scores, so they have the whole of the probability.
    """
    answers = {one.id: one.answer(scores) for one, scores in zip(questions, logits, strict=True)}
    return {
        "model": model,
        "answers": answers,
        "usage": {"input_tokens": tokens, "output_tokens": 0},
        "diagnostics": {name: {"label_mass": 1.0, "argmax_is_label": True} for name in answers},
    }


def parse_systemone(data: dict[str, Any], settings: Settings) -> SystemOneRequest:
    """The checked body of a request.

    Raises:
        RequestError: 422 for an unknown key or an invalid value.
    """
    for key in data:
        check_name("body", "key", key, _KEYS)
    model, state, questions = data.get("model"), data.get("state"), data.get("questions")
    if model is not None and not isinstance(model, str):
        raise unprocessable(f"model: must be a string, got {as_json(model)}")
    text = _content("state", state)
    if text is None:
        raise unprocessable("state: must be a string, an object or a list, got null")
    check_length("state", len(text), settings)
    if not isinstance(questions, dict):
        raise unprocessable(f"questions: must be an object of questions, got {as_json(questions)}")
    most = min(MAX_QUESTIONS, settings.queue)
    if not 0 < len(questions) <= most:
        raise unprocessable(f"questions: must be from 1 to {most}, got {len(questions)}")
    return SystemOneRequest(text, [_question(*pair, settings) for pair in questions.items()], model)


def _question(name: str, data: Any, settings: Settings) -> Question:
    """A checked question. Raises RequestError."""
    where = f"questions: {name[:100]!r}"
    if not name:
        raise unprocessable("questions: an id is empty, expected a name")
    if not isinstance(data, dict):
        raise unprocessable(f"{where}: must be an object, got {as_json(data)}")
    for key in data:
        check_name(where, "key", key, _QUESTION_KEYS)
    kind, criteria = data.get("type"), data.get("criteria")
    check_name(where, "type", kind if isinstance(kind, str) else as_json(kind), TYPES)
    hypothesis = _content(f"{where}: instructions", data.get("instructions")) or None
    legend: list[Any] = []
    labels: dict[str, Any] | list[str]
    if kind == SCORE:
        low, high = LEVELS
        if not isinstance(criteria, list) or not low <= len(criteria) <= high:
            raise unprocessable(f"{where}: criteria: must be a list of {low} to {high} levels")
        legend, labels = criteria, [_content(f"{where}: criteria", level) or "" for level in criteria]
    else:
        if kind == NOUL:
            criteria = _outcomes(where, criteria)
        if not isinstance(criteria, dict):
            problem = "must be an object of options and their descriptions"
            raise unprocessable(f"{where}: criteria: {problem}, got {as_json(criteria)}")
        labels = {option: _content(f"{where}: criteria", text) for option, text in criteria.items()}
        if kind == NOUL and not hypothesis and not any(labels.values()):
            raise unprocessable(f"{where}: must have instructions, or criteria that describe an outcome")
    check_labels(f"{where}: criteria", labels, MAX_OPTIONS, settings)
    return Question(name, str(kind), labels, hypothesis, legend)


def _outcomes(where: str, criteria: Any) -> Any:
    """The descriptions of true and false, in this order. Raises RequestError."""
    if criteria is None:
        criteria = {}
    if isinstance(criteria, dict):
        for key in criteria:
            check_name(f"{where}: criteria", "outcome", key, _OUTCOMES)
        return {outcome: criteria.get(outcome) for outcome in _OUTCOMES}
    return criteria


def _content(where: str, value: Any) -> str | None:
    """A string as it is, an object or a list as its JSON. Raises RequestError for numbers, true and false."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, (dict, list)):
        raise unprocessable(f"{where}: must be a string, an object or a list, got {as_json(value)}")
    return to_json(value)
