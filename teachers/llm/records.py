"""What was asked of a model, or would be, in numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

CHARACTERS = 4  # of a token, about


@dataclass
class Counts:
    """What was asked, answered and given up.

    Attributes:
        texts: That were to be labelled.
        answered: Texts with an answer for every head, from the cache or the server.
        cached: Texts that needed no request.
        dropped: Texts with a head that was given up: its answers were outside the choice, or refused.
        failed: Texts that the server did not answer in all tries; the next run asks again.
        bad_answers: Answers outside the choice, or unreadable; each was retried.
        requests: That were sent, repeated ones included.
        retries: Requests that were repeated as the server was busy, failed or could not be reached.
        input_tokens: That the server says it has read.
        output_tokens: That the server says it has written.
    """

    texts: int = 0
    answered: int = 0
    cached: int = 0
    dropped: int = 0
    failed: int = 0
    bad_answers: int = 0
    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts of other texts."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def add_usage(self, reply: Any) -> None:
        """Add the tokens in a reply, if it names them."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        for ours, theirs in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")):
            found = (usage.get(theirs) or usage.get(ours)) if isinstance(usage, dict) else 0
            if isinstance(found, int):
                setattr(self, ours, getattr(self, ours) + found)


@dataclass
class Estimate:
    """What asking would take, without a request.

    Attributes:
        texts: To be labelled.
        cached: Texts that need no request.
        requests: Without repeated ones.
        input_tokens: A quarter of the characters that would be sent.
        output_tokens: A quarter of those that would be answered.
        cost: At the prices of the settings.
        route: Of the requests.
        assumed: Whether the server was not asked yet which route it has.
    """

    texts: int = 0
    cached: int = 0
    requests: int = 0
    input_tokens: float = 0
    output_tokens: float = 0
    cost: float = 0
    route: str = ""
    assumed: bool = False


def sent_characters(body: dict[str, Any]) -> int:
    """The characters of a request that the model reads."""
    if "messages" in body:
        return sum(len(message["content"]) for message in body["messages"])
    return len(json.dumps(body, ensure_ascii=False))
