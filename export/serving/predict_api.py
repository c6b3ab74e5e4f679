"""`/predict`: the arguments of `Classifier.__call__` as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.serving.request import as_json, check_labels, check_name, check_texts, unprocessable
from export.serving.settings import Settings

MAX_LABELS = 1000  # of a request
_KEYS = ("text", "texts", "heads", "top_k", "scores", "labels", "thresholds", "abstain", "model")


@dataclass(frozen=True)
class PredictRequest:
    """The body of a `/predict` request. Names, labels and thresholds are not checked yet."""

    texts: list[str]
    single: bool
    heads: list[str] | None
    top_k: int | None
    scores: bool
    labels: dict[str, Any] | list[str] | None
    thresholds: object
    abstain: bool
    model: str | None

    @property
    def lists(self) -> bool:
        """Whether the answers are lists of all labels or of the best ones."""
        return self.scores or self.top_k is not None

    @property
    def own_answers(self) -> bool:
        """Whether the answers are others than those that the bundle gives by default."""
        return self.lists or self.thresholds is not None or not self.abstain


def parse_predict(data: dict[str, Any], settings: Settings) -> PredictRequest:
    """The checked body of a `/predict` request.

    Raises:
        RequestError: 422 for an unknown key or an invalid value.
    """
    for key in data:
        check_name("body", "key", key, _KEYS)
    single = "text" in data
    if single == ("texts" in data):
        raise unprocessable('body: must have either "text", a string, or "texts", a list of strings')
    where, texts = ("text", [data["text"]]) if single else ("texts", data["texts"])
    texts = check_texts(texts, settings, where)
    heads, top_k, model = data.get("heads"), data.get("top_k"), data.get("model")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise unprocessable(f"top_k: must be an integer >= 1, got {as_json(top_k)}")
    if heads is not None:
        if not (isinstance(heads, list) and heads and all(isinstance(name, str) for name in heads)):
            raise unprocessable("heads: must be a list of at least one name")
        heads = list(dict.fromkeys(heads))
    scores = data.get("scores", False)
    if not isinstance(scores, bool):
        raise unprocessable(f"scores: must be true or false, got {as_json(scores)}")
    if model is not None and not isinstance(model, str):
        raise unprocessable(f"model: must be a string, got {as_json(model)}")
    labels = data.get("labels")
    if labels is not None:
        labels = check_labels("labels", labels, MAX_LABELS, settings)
    thresholds, abstain = data.get("thresholds"), data.get("abstain", True)
    if not isinstance(abstain, bool):
        raise unprocessable(f"abstain: must be true or false, got {as_json(abstain)}")
    body = PredictRequest(texts, single, heads, top_k, scores, labels, thresholds, abstain, model)
    if body.lists and thresholds is not None:
        raise unprocessable("thresholds: do not apply to lists of labels (leave out top_k and scores)")
    return body
