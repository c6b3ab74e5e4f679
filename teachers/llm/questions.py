"""The questions about a text, and a head's probabilities from their answers.

A single_label head is one choice. Where a question may have few options, the labels are asked in groups, and
then among the groups' winners. A multi_label head is a yes or no for each label, or one list of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from teachers.llm.settings import AskedHead

# probabilities: of the options of a choice, of yes, or of each option of a list
Answer = list[float]
Rounds = Generator[list["Question"], list[Answer | None], Answer | None]


@dataclass(frozen=True)
class Question:
    """A question with a closed choice of answers.

    Attributes:
        head: The name of the head.
        kind: `choice`: one of the options; `yes_no`: whether its one option applies; `list`: any of them.
        text: The question itself.
        options: The labels and their descriptions.
    """

    head: str
    kind: Literal["choice", "yes_no", "list"]
    text: str
    options: tuple[tuple[str, str | None], ...]

    @property
    def labels(self) -> list[str]:
        """The labels of the options."""
        return [label for label, _ in self.options]

    def to_json(self) -> dict[str, Any]:
        """The question as a JSON object."""
        return asdict(self)

    def probabilities(self, answer: Any) -> Answer | None:
        """The answer with its sum corrected, or None if it is no probabilities of these options."""
        size = 1 if self.kind == "yes_no" else len(self.options)
        if not isinstance(answer, list) or len(answer) != size:
            return None
        if not all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in answer):  # NaN is not
            return None
        if self.kind != "choice":
            return answer
        total = sum(answer)
        return [p / total for p in answer] if 0.95 <= total <= 1.05 else None


def answer_heads(
    heads: Sequence[AskedHead],
    ask: Callable[[list[Question]], list[Answer | None]],
    *,
    most_options: int | None,
    lists: bool,
) -> dict[str, Answer | None]:
    """The probabilities of every head's labels for one text; None for a head without an answer.

    Args:
        heads: To ask about.
        ask: Answers questions about the text, in order; called once a round.
        most_options: Of a choice; None sets no limit.
        lists: Whether a multi_label head is one list in place of a yes or no for each label.
    """
    rounds: dict[str, Rounds] = {}
    for head in heads:
        if head.kind == "single_label":
            rounds[head.name] = _choose(head, head.labels, most_options)
        else:
            rounds[head.name] = _list(head) if lists else _each(head)
    found: dict[str, Answer | None] = {}
    waiting = {name: next(asking) for name, asking in rounds.items()}
    while waiting:
        answers = iter(ask([question for some in waiting.values() for question in some]))
        following = {}
        for name, some in waiting.items():
            try:
                following[name] = rounds[name].send(list(islice(answers, len(some))))
            except StopIteration as end:
                found[name] = end.value
        waiting = following
    return {head.name: found[head.name] for head in heads}


def _choose(head: AskedHead, labels: Sequence[str], most: int | None) -> Rounds:
    """One choice, or groups and then their winners.

    A label has the share of its group's winner times its own share of the winner's in the group, which is
    exact where the odds of two labels do not depend on the others (Luce 1959).
    """
    count = -(-len(labels) // (most or len(labels)))
    groups = [labels[start::count] for start in range(count)]
    text = head.question or f"Which {_words(head.name)} does the text have?"
    answers = yield [Question(head.name, "choice", text, _described(head, some)) for some in groups]
    if None in answers:
        return None
    shares = [answer for answer in answers if answer]
    if count == 1:
        return shares[0]
    best = [max(range(len(share)), key=share.__getitem__) for share in shares]
    final = yield from _choose(head, [some[i] for some, i in zip(groups, best, strict=True)], most)
    if final is None:
        return None
    of_label: dict[str, float] = {}
    for some, share, i, winner in zip(groups, shares, best, final, strict=True):
        of_label |= {label: winner * p / share[i] for label, p in zip(some, share, strict=True)}
    total = sum(of_label.values())
    return [of_label[label] / total for label in labels]


def _each(head: AskedHead) -> Rounds:
    text = head.question or f"Does this {_words(head.name)} apply to the text?"
    answers = yield [Question(head.name, "yes_no", text, _described(head, [label])) for label in head.labels]
    return None if None in answers else [answer[0] for answer in answers if answer]


def _list(head: AskedHead) -> Rounds:
    text = head.question or f"Which {_words(head.name)} apply to the text?"
    (answer,) = yield [Question(head.name, "list", text, _described(head, head.labels))]
    return answer


def _described(head: AskedHead, labels: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
    return tuple((label, head.descriptions.get(label)) for label in labels)


def _words(name: str) -> str:
    return name.replace("_", " ")


def smoothed(votes: Sequence[Answer], options: int) -> Answer:
    """The shares of votes, with one further vote that is shared by the options: no share is 0.

    Args:
        votes: Each 1 for the chosen options and 0 for the others.
        options: The number of answers that exclude one another: of a choice its options, else 2.
    """
    return [(sum(column) + 1 / options) / (len(votes) + 1) for column in zip(*votes, strict=True)]
