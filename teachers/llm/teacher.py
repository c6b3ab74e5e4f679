"""A language model that labels texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachers.llm.asking import Asking, Key
from teachers.llm.cache import AnswerCache, Entry, key_of
from teachers.llm.client import Client
from teachers.llm.probe import probe
from teachers.llm.questions import Answer, Question, answer_heads
from teachers.llm.records import CHARACTERS, Counts, Estimate, sent_characters
from teachers.llm.routes import Route, most_of, route_of
from teachers.llm.settings import AskedHead, LlmSettings

LEAST = 1e-6  # probability
Array = NDArray[Any]


class LlmTeacher:
    """A language model behind an OpenAI-compatible server (`teachers.base.Teacher`).

    `ask` sends what the cache does not answer. `logits` and `estimate` send nothing.

    Attributes:
        digest: Of model, questions and route, not of the server's address.
        labels: The labels of each head.
    """

    def __init__(self, settings: LlmSettings, heads: Sequence[AskedHead], *, backoff: float = 0.5) -> None:
        """A teacher of these heads.

        Args:
            settings: The server, and how it is asked.
            heads: What it is asked about.
            backoff: Seconds before a request is repeated, doubled each time.

        Raises:
            LlmError: The cache cannot be opened.
        """
        self.settings, self.heads, self._backoff = settings, tuple(heads), backoff
        self.labels = {head.name: head.labels for head in heads}
        asked = [settings.model, settings.instructions, settings.route, settings.samples]
        self.digest = key_of(asked, [asdict(head) for head in heads]).hex()
        self._cache = AnswerCache(settings.cache)
        self._client: Client | None = None
        self._useful = False  # whether any answer was valid

    def ask(
        self,
        texts: Sequence[str],
        progress: Callable[[int], object] = lambda texts: None,
        *,
        dropped: bool = False,
    ) -> Counts:
        """Ask about the texts that the cache does not answer; each answer is kept when it arrives.

        Args:
            texts: Each is asked about once.
            progress: Called with the number of texts that are done since the last call.
            dropped: Ask again what was given up earlier.

        Raises:
            LlmError: The server cannot be reached, refuses the key or answers nothing usable, or
                `max_requests` are sent.
        """
        client = self._client = self._client or Client(self.settings, backoff=self._backoff)
        requests, retries = client.requests, client.retries
        route = self._known_route()
        if route is None:
            if not texts:
                return Counts()
            route = probe(client, self.settings)
            self._cache.put(self._route_key(), [route.name, most_of(route)])
        key = Key(self.settings, route)
        asking = Asking(client, self._cache, key, self.heads, dropped=dropped, useful=self._useful)
        counts = asking.run(list(dict.fromkeys(texts)), self.settings.concurrency, progress)
        self._useful = asking.useful
        counts.requests, counts.retries = client.requests - requests, client.retries - retries
        return counts

    def logits(self, texts: Sequence[str]) -> dict[str, Array]:
        """The logits of each head from the cache, float32 `[texts, labels]`; NaN where it has no answer."""
        found = {
            name: np.full((len(texts), len(some)), np.nan, np.float32) for name, some in self.labels.items()
        }
        if (route := self._known_route()) is None:
            return found
        for row, text in enumerate(texts):
            for head in self.heads:
                (answer,) = self._offline(route, [head], text, lambda question: None).values()
                if answer is not None:
                    found[head.name][row] = _logits(head, answer)
        return found

    def estimate(self, texts: Sequence[str]) -> Estimate:
        """What `ask` would send, estimated without a request."""
        settings, route = self.settings, self._known_route()
        result = Estimate(assumed=route is None)
        route = route or route_of(settings.route or "logprobs", settings.samples)
        result.route = route.name
        for text in dict.fromkeys(texts):
            missing: list[Question] = []

            def assume(question: Question, missing: list[Question] = missing) -> Answer:
                missing.append(question)
                size = len(question.options)
                return [1 / size] * size

            self._offline(route, self.heads, text, assume)
            result.texts += 1
            result.cached += not missing
            for start in range(0, len(missing), route.questions):
                some = missing[start : start + route.questions]
                body = route.body(settings, some, text, route.votes)
                result.requests += route.repeats
                result.input_tokens += route.repeats * sent_characters(body) / CHARACTERS
                result.output_tokens += route.output_tokens(some)
        prices = settings.input_price * result.input_tokens, settings.output_price * result.output_tokens
        result.cost = sum(prices) / 1e6
        return result

    @property
    def route(self) -> str | None:
        """The route that the server was found to have, None if it was not asked yet."""
        route = self._known_route()
        return route.name if route else None

    def close(self) -> None:
        """Close the cache and the connections."""
        self._cache.close()
        if self._client:
            self._client.close()

    def _known_route(self) -> Route | None:
        """The route that the server was found to have, None if it was not asked."""
        found = self._cache.get(self._route_key())
        return route_of(found[0], self.settings.samples, found[1]) if isinstance(found, list) else None

    def _route_key(self) -> bytes:
        return key_of("route", self.settings.base_url, self.settings.model, self.settings.route)

    def _offline(
        self,
        route: Route,
        heads: Sequence[AskedHead],
        text: str,
        unknown: Callable[[Question], Answer | None],
    ) -> dict[str, Answer | None]:
        """The probabilities of heads from the cache, with an answer to what it does not hold."""
        key = Key(self.settings, route)

        def answer(question: Question) -> Answer | None:
            entry = Entry.from_json(self._cache.get(key(question, text)), question)
            if entry.missing(route.votes):
                return unknown(question)
            return route.combined(question, entry.votes[: route.votes]) if entry.votes else None

        return answer_heads(
            heads, lambda asked: [*map(answer, asked)], most_options=route.options, lists=route.lists
        )


def _logits(head: AskedHead, answer: Answer) -> Array:
    p = np.clip(np.array(answer), LEAST, 1 - LEAST)
    return np.asarray(np.log(p) if head.kind == "single_label" else np.log(p / (1 - p)))
