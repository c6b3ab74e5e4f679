"""Bodies into texts and options, for `/predict` and for what both protocols have in common.

`/predict` takes the arguments of `Classifier.__call__` and gives what that returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import orjson

from export.bundle.manifest import Head
from export.runtime.postprocess import Answers
from export.runtime.probabilities import Floats
from export.serving.errors import Refusal, wrong
from export.serving.settings import Settings

_KEYS = ("text", "texts", "heads", "top_k", "scores", "model")


@dataclass(frozen=True)
class Asked:
    """The body of a `/predict`, checked as far as it can be without a bundle."""

    texts: list[str]
    single: bool
    heads: tuple[str, ...] | None
    top_k: int | None
    scores: bool
    model: str | None


class Plain:
    """Answers as `Classifier.__call__` gives them."""

    def __init__(self, heads: Sequence[Head], top_k: int | None, scores: bool) -> None:
        self._answers, self._top_k, self._scores = Answers(heads), top_k, scores

    def answer(self, logits: Mapping[str, Floats]) -> list[dict[str, Any]]:
        """A dict of heads to each row of the logits."""
        parts = [logits[head.name] for head in self._answers.heads]
        return self._answers(np.concatenate(parts, axis=1), self._top_k, self._scores)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises: Refusal 400, no JSON in UTF-8; 422, no object."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"body: must be JSON in UTF-8: {error.msg} (at {error.pos})", "json") from None
    if not isinstance(data, dict):
        raise wrong(f"body: must be a JSON object, got {kind(data)}")
    return data


def read_predict(body: bytes, settings: Settings) -> Asked:
    """What a `/predict` asks. Raises: Refusal."""
    data = json_object(body)
    for key in data:
        if key not in _KEYS:
            raise wrong(f"body: {unknown('key', key, _KEYS)}")
    single = "text" in data
    if single == ("texts" in data):
        raise wrong('body: must have either "text", a string, or "texts", a list of strings')
    texts = [data["text"]] if single else data["texts"]
    check_texts(texts, settings, "text" if single else "texts")
    top_k, heads, model = data.get("top_k"), data.get("heads"), data.get("model")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise wrong(f"top_k: must be a whole number >= 1, got {kind(top_k)}")
    if heads is not None and not (isinstance(heads, list) and heads and all(type(x) is str for x in heads)):
        raise wrong("heads: must be a list of at least one name")
    if type(scores := data.get("scores", False)) is not bool:
        raise wrong(f"scores: must be true or false, got {kind(scores)}")
    if model is not None and type(model) is not str:
        raise wrong(f"model: must be a name, got {kind(model)}")
    return Asked(texts, single, tuple(heads) if heads else None, top_k, scores, model)


def check_texts(texts: Any, settings: Settings, where: str) -> None:
    """Raises Refusal unless this is a list of strings, as many and as long as are taken."""
    if not isinstance(texts, list):
        raise wrong(f"{where}: must be a list of strings, got {kind(texts)}")
    if len(texts) > settings.queue:
        raise wrong(f"{where}: at most {settings.queue} are taken at once, got {len(texts)} (ask in parts)")
    for position, text in enumerate(texts):
        place = where if where == "text" else f"{where}: position {position}"
        if type(text) is not str:
            raise wrong(f"{place}: must be a string, got {kind(text)}")
        if len(text) > settings.max_text:
            problem = f"has {len(text)} characters, at most {settings.max_text} are taken"
            raise wrong(f"{place}: {problem} (cut the text)", "text")


def kind(value: Any) -> str:
    """What JSON calls a value of its kind; numbers are told as they are."""
    if type(value) in (int, float):
        return f"{value!r:.40}"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null")


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """A line on a name that is none of the known, with the nearest of them."""
    near = get_close_matches(name[:100], known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name[:100]!r}, expected one of {[*known]}{hint}"
