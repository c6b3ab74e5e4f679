"""Three ways to get probabilities from a server: what is sent, and how the reply is read.

`logprobs`: the answer is a letter, one token whose log probabilities the server returns. `samples`: several
answers in words. `systemone`: typed questions with a probability for every option.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from teachers.llm.questions import Answer, Question, smoothed
from teachers.llm.settings import LlmSettings, RouteName

Body = dict[str, Any]
Votes = list[Answer | None]

CHAT, SYSTEMONE = "chat/completions", "systemone"
TOP_LOGPROBS = 20  # the most that servers return
MIN_MASS = 0.1  # probability of all options below which the model has answered something else
YES_NO = (("yes", None), ("no", None))
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


class Route(ABC):
    """A way to ask.

    Attributes:
        name: Of the way.
        path: Below the base URL.
        questions: Most questions of a request.
        options: Most options of a choice; None sets no limit.
        lists: Whether a multi_label head is one list.
        votes: Valid answers that a question needs.
        repeats: Requests for these.
    """

    name: RouteName
    path = CHAT
    questions = 1
    options: int | None = None
    lists = False
    votes = repeats = 1

    @abstractmethod
    def body(self, settings: LlmSettings, asked: Sequence[Question], text: str, votes: int) -> Body:
        """The request: so many answers of each of these questions about a text."""

    @abstractmethod
    def votes_in(self, reply: Any, asked: Sequence[Question]) -> list[Votes]:
        """The answers to each question in a reply, which may be any JSON; None for an invalid one."""

    @abstractmethod
    def output_tokens(self, asked: Sequence[Question]) -> float:
        """An estimate of the tokens that the model writes."""

    def combined(self, question: Question, votes: Sequence[Answer]) -> Answer:
        """The probabilities from the valid answers, of which there is at least one."""
        return votes[0]


class Logprobs(Route):
    """One question a request, answered by a letter; the probabilities are those of its first token."""

    name: RouteName = "logprobs"

    def __init__(self, top: int = TOP_LOGPROBS) -> None:
        """Args: `top`, the log probabilities that the server returns of a token."""
        self.top = top
        self.options = min(top, len(ascii_uppercase))

    def body(self, settings: LlmSettings, asked: Sequence[Question], text: str, votes: int) -> Body:
        """A chat of one message."""
        (question,) = asked
        options: Sequence[tuple[str, str | None]]
        if question.kind == "yes_no":
            options = YES_NO
            lines = [_option(question.options[0]), question.text]
        else:
            options, lines = question.options, [question.text]
        lines += [f"{x}: {_option(option)}" for x, option in zip(ascii_uppercase, options, strict=False)]
        return {
            "model": settings.model,
            "messages": _message(
                settings.instructions, lines, text, "Answer with the letter of one answer alone."
            ),
            "max_tokens": 1,
            "temperature": 1,
            "logprobs": True,
            "top_logprobs": self.top,
        }

    def votes_in(self, reply: Any, asked: Sequence[Question]) -> list[Votes]:
        """The probabilities of the letters among all letters."""
        (question,) = asked
        letters = ascii_uppercase[: 2 if question.kind == "yes_no" else len(question.options)]
        mass, rest = dict.fromkeys(letters, 0.0), 1.0
        if not (top := top_logprobs(reply)):
            return [[None]]
        for token, p in top:
            rest -= p
            if (letter := token.strip(" \n\t.:)('\"*`")) in mass:
                mass[letter] += p
        total = sum(mass.values())
        if not MIN_MASS <= total <= 1.05:
            return [[None]]
        # a letter that is not among the tokens has at most the probability of the last of them
        unseen = [letter for letter in letters if not mass[letter]]
        floor = min(max(rest, 0.0) / max(1, len(unseen)), min(p for _, p in top))
        mass |= dict.fromkeys(unseen, floor)
        answer = [p / sum(mass.values()) for p in mass.values()]
        return [[answer[:1] if question.kind == "yes_no" else answer]]

    def output_tokens(self, asked: Sequence[Question]) -> float:
        """One."""
        return 1


class Samples(Route):
    """All questions in a request, answered by a JSON object; the probabilities are shares of samples."""

    name: RouteName = "samples"
    questions = 1000
    lists = True

    def __init__(self, samples: int, *, several: bool = True) -> None:
        """Make the route.

        Args:
            samples: Of a question.
            several: Whether the server returns several samples to a request.
        """
        self.votes, self._several = samples, several
        self.repeats = 1 if several else samples

    def body(self, settings: LlmSettings, asked: Sequence[Question], text: str, votes: int) -> Body:
        """A chat of one message, with several answers."""
        lines = ["Answer with labels, which you repeat exactly."]
        for question in asked:
            how = "any number of" if question.kind == "list" else "one of"
            lines += [f"{json.dumps(question.head)}: {question.text} Choose {how}:"]
            lines += [f"- {_option(option)}" for option in question.options]
        form = ", ".join(
            f"{json.dumps(q.head)}: {'[LABEL, ...]' if q.kind == 'list' else 'LABEL'}" for q in asked
        )
        body = {
            "model": settings.model,
            "messages": _message(settings.instructions, lines, text, f"Answer with JSON alone: {{{form}}}"),
            "temperature": 1,
        }
        return body | ({"n": votes} if self._several and votes > 1 else {})

    def votes_in(self, reply: Any, asked: Sequence[Question]) -> list[Votes]:
        """For each sample, 1 for the chosen labels of the question."""
        choices = _at(reply, "choices")
        samples = choices if isinstance(choices, list) else []
        answered = [_json_object(_at(choice, "message", "content")) for choice in samples]
        return [[_chosen(question, some.get(question.head)) for some in answered] for question in asked]

    def combined(self, question: Question, votes: Sequence[Answer]) -> Answer:
        """The smoothed shares."""
        return smoothed(votes, 2 if question.kind == "list" else len(question.options))

    def output_tokens(self, asked: Sequence[Question]) -> float:
        """A quarter of the characters of an answer with the longest labels, for every sample."""
        characters = sum(len(q.head) + max(map(len, q.labels)) + 8 for q in asked)
        return self.votes * characters / 4


class SystemOne(Route):
    """Many typed questions in a request, each answered by the probabilities of its options."""

    name: RouteName = "systemone"
    path = SYSTEMONE
    questions, options = 64, 26  # the limits of vLLM

    def body(self, settings: LlmSettings, asked: Sequence[Question], text: str, votes: int) -> Body:
        """The text as the state, and questions by number."""
        return {
            "model": settings.model,
            "state": text,
            "questions": {
                f"q{i}": _typed(settings.instructions, question) for i, question in enumerate(asked)
            },
        }

    def votes_in(self, reply: Any, asked: Sequence[Question]) -> list[Votes]:
        """The probabilities of the options of each question, or of yes."""
        found: list[Votes] = []
        for number, question in enumerate(asked):
            answer = _at(reply, "answers", f"q{number}")
            mass = _at(reply, "diagnostics", f"q{number}", "label_mass")
            vote = None if isinstance(mass, (int, float)) and mass < MIN_MASS else _shares(answer, question)
            found.append([vote])
        return found

    def output_tokens(self, asked: Sequence[Question]) -> float:
        """None."""
        return 0


def route_of(name: RouteName, samples: int, most: int | None = None) -> Route:
    """The route of a name.

    Args:
        name: Of the route.
        samples: Of a question.
        most: What the server was found to return at most: log probabilities, or samples.
    """
    if name == "logprobs":
        return Logprobs(most or TOP_LOGPROBS)
    return Samples(samples, several=most != 1) if name == "samples" else SystemOne()


def most_of(route: Route) -> int:
    """The argument `most` that makes the route again."""
    return route.top if isinstance(route, Logprobs) else 1 if route.repeats > 1 else 0


def content_of(reply: Any) -> str:
    """The text of a reply, or its error, for a message; empty if it has neither."""
    text = _at(_first(_at(reply, "choices")), "message", "content")
    return text if isinstance(text, str) else str(_at(reply, "error", "message") or _at(reply, "error") or "")


def top_logprobs(reply: Any) -> list[tuple[str, float]]:
    """The likeliest first tokens of a reply and their probabilities; empty if it has none."""
    content = _at(_first(_at(reply, "choices")), "logprobs", "content")
    top = _at(_first(content), "top_logprobs")
    found = []
    for entry in top if isinstance(top, list) else ():
        token, value = _at(entry, "token"), _at(entry, "logprob")
        if isinstance(token, str) and isinstance(value, (int, float)) and value <= 1e-3:  # NaN is not
            found.append((token, math.exp(value)))
    return found


def _message(instructions: str | None, lines: Sequence[str], text: str, last: str) -> list[dict[str, str]]:
    """A chat of one message; some models take no system message."""
    parts = [instructions, "\n".join(lines), f"<text>\n{text}\n</text>", last]
    return [{"role": "user", "content": "\n\n".join(filter(None, parts))}]


def _option(option: tuple[str, str | None]) -> str:
    label, description = option
    return f"{label} ({description})" if description else label


def _typed(instructions: str | None, question: Question) -> dict[str, Any]:
    """A question of `/v1/systemone`."""
    text = "\n\n".join(filter(None, (instructions, question.text)))
    if question.kind == "yes_no":
        return {"type": "noul", "instructions": f"{text}\n{_option(question.options[0])}"}
    return {"type": "choice", "instructions": text, "criteria": dict(question.options)}


def _shares(answer: Any, question: Question) -> Answer | None:
    """The probabilities in an answer of `/v1/systemone`, None if they are not those of the question."""
    shares = _at(answer, "probabilities")
    if question.kind == "yes_no":
        yes = _at(answer, "noul") if shares is None else _at(shares, "true")
        return question.probabilities([yes])
    if not isinstance(shares, dict) or {*shares} != {*question.labels}:
        return None
    return question.probabilities([shares[label] for label in question.labels])


def _chosen(question: Question, value: Any) -> Answer | None:
    """1 for each chosen label and 0 for the others; None if a value is no label."""
    values = value if isinstance(value, list) else [value]
    if question.kind == "choice" and len(values) != 1:
        return None
    labels = [_folded(label) for label in question.labels]
    chosen = [_folded(x) for x in values]
    if not {*chosen} <= {*labels}:
        return None
    return [float(label in chosen) for label in labels]


def _folded(value: Any) -> str:
    """A label without differences of space, and of JSON's types; booleans as YAML writes them."""
    text = json.dumps(value) if isinstance(value, (bool, int, float)) else value
    return " ".join(text.split()) if isinstance(text, str) else ""


def _json_object(text: Any) -> dict[str, Any]:
    """The JSON object in a text that may have more around it; empty if there is none."""
    if not isinstance(text, str):
        return {}
    text = _THINKING.sub("", text)
    try:
        found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _at(value: Any, *keys: str) -> Any:
    """The value below keys, None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
