"""Asks a server about many texts at a time; what has arrived is kept, however the process ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Queue
from threading import Event, Lock, Thread
from time import monotonic

from teachers.llm.cache import BAD_ANSWERS, AnswerCache, Entry, key_of
from teachers.llm.client import Client, RefusedError, RequestLimitError, StoppedError, UnavailableError
from teachers.llm.probe import not_found
from teachers.llm.questions import Answer, Question, answer_heads
from teachers.llm.records import Counts
from teachers.llm.routes import Route, Votes, content_of
from teachers.llm.settings import AskedHead, LlmError, LlmSettings

LOG = logging.getLogger("tinyheads")
USELESS = 20  # questions that are given up before the first valid answer
ABOUT_A_TEXT = (400, 413, 422)  # refusals that need not concern other texts
PATIENCE = 2.0  # seconds for the requests in flight when the asking is stopped
KEPT = "answers so far are kept"


@dataclass(frozen=True)
class Key:
    """The key in the cache of a question about a text: a digest of both, of the model and of the route."""

    settings: LlmSettings
    route: Route

    def __call__(self, question: Question, text: str) -> bytes:
        """The key."""
        settings = self.settings
        return key_of(settings.model, settings.instructions, self.route.name, question.to_json(), text)


class Asking:
    """One pass over texts: threads that ask, and the counts of what came of it."""

    def __init__(
        self,
        client: Client,
        cache: AnswerCache,
        key: Key,
        heads: Sequence[AskedHead],
        *,
        dropped: bool,
        useful: bool = False,
    ) -> None:
        """A pass.

        Args:
            client: Of the server.
            cache: Of the answers.
            key: Of the model and the route.
            heads: To ask about.
            dropped: Ask again what was given up.
            useful: Whether an earlier pass had a valid answer.
        """
        self._client, self._cache, self._key, self._heads = client, cache, key, heads
        self._settings, self._route, self._dropped = key.settings, key.route, dropped
        self._lock, self._stop = Lock(), Event()
        self.useful = useful
        self._given_up: list[bytes] = []
        self._reason = ""
        self.counts = Counts()

    def run(self, texts: Sequence[str], threads: int, progress: Callable[[int], object]) -> Counts:
        """Ask about texts, several at a time.

        Args:
            texts: Each of them once.
            threads: Texts at a time.
            progress: Called with the number of texts that are done since the last call.

        Raises:
            LlmError: As in `LlmTeacher.ask`.
        """
        self.counts.texts = len(texts)
        pending, results = iter(texts), Queue[Exception | None]()
        workers = [
            Thread(target=self._work, args=(pending, results), daemon=True)
            for _ in range(min(threads, len(texts)))
        ]
        for worker in workers:
            worker.start()
        running, in_a_row, limit = len(workers), 0, None
        try:
            while running:
                outcome = results.get()
                if isinstance(outcome, (StoppedError, RequestLimitError)):  # a thread has ended
                    running -= 1
                    limit = limit or (outcome if isinstance(outcome, RequestLimitError) else None)
                    continue
                if outcome is not None and not isinstance(outcome, UnavailableError):
                    raise outcome
                progress(1)
                in_a_row = in_a_row + 1 if outcome else 0
                if in_a_row >= max(threads, 3):
                    raise LlmError(
                        f"{self._settings.host} does not answer any more: {outcome} ({KEPT}; run the same "
                        "command again when it does)"
                    )
            if limit:
                raise LlmError(
                    f"max_requests: {self._settings.max_requests} requests are sent, {self.counts.answered} "
                    f"of {len(texts)} texts are answered ({KEPT}; run the same command again, or raise it)"
                )
            self._check_useful(1)
        finally:
            self._stop.set()
            until = monotonic() + PATIENCE
            for worker in workers:
                worker.join(max(0.0, until - monotonic()))
        return self.counts

    def _work(self, pending: Iterator[str], results: Queue[Exception | None]) -> None:
        """Ask about the pending texts; puts None for each, an exception for one without an answer."""
        while True:
            with self._lock:
                text = None if self._stop.is_set() else next(pending, None)
            if text is None:
                results.put(StoppedError())
                return
            try:
                self._label(text)
                results.put(None)
            except UnavailableError as error:
                with self._lock:
                    self.counts.failed += 1
                results.put(error)
            except Exception as error:
                results.put(error)
                return

    def _label(self, text: str) -> None:
        sent = 0

        def ask(questions: list[Question]) -> list[Answer | None]:
            nonlocal sent
            entries = {}
            for question in questions:
                key = self._key(question, text)
                entries[key] = question, self._entry(key, question)
            sent += self._complete(entries, text)
            answers = []
            for question, entry in entries.values():
                votes = entry.votes[: self._route.votes]
                answers.append(self._route.combined(question, votes) if votes else None)
            return answers

        found = answer_heads(self._heads, ask, most_options=self._route.options, lists=self._route.lists)
        with self._lock:
            self.counts.cached += not sent
            self.counts.answered += None not in found.values()
            self.counts.dropped += None in found.values()

    def _entry(self, key: bytes, question: Question) -> Entry:
        entry = Entry.from_json(self._cache.get(key), question)
        if entry.votes:
            self.useful = True
        if self._dropped and entry.bad >= BAD_ANSWERS:
            entry.bad = 0
        return entry

    def _complete(self, entries: dict[bytes, tuple[Question, Entry]], text: str) -> int:
        """Ask the questions that have too few answers until they have enough or are given up.

        Returns the number of requests.
        """
        sent, settings, route = 0, self._settings, self._route
        found: Sequence[Votes | None]
        while missing := {key: n for key, (_, entry) in entries.items() if (n := entry.missing(route.votes))}:
            some = [*missing][: route.questions]
            asked = [entries[key][0] for key in some]
            votes = min(missing[key] for key in some)
            sent += 1
            try:
                body = route.body(settings, asked, text, votes)
                reply = self._client.post(route.path, body, self._stop)
            except RefusedError as error:
                if error.status not in ABOUT_A_TEXT:
                    raise (
                        not_found(settings, error)
                        if error.status == 404
                        else LlmError(f"{settings.host} refuses a request: {error} ({KEPT})")
                    ) from None
                reply, found = None, [None] * len(some)
                self._reason = str(error)
            else:
                found = route.votes_in(reply, asked)
                if not any(vote for votes in found for vote in votes):
                    self._reason = self._client.readable(content_of(reply)) or "no answer"
            with self._lock:
                self.counts.add_usage(reply)
            for number, key in enumerate(some):
                self._keep(key, entries[key][1], found[number])
        return sent

    def _keep(self, key: bytes, entry: Entry, votes: Votes | None) -> None:
        """Add valid answers to an entry and count the bad; None, a refusal, gives the question up."""
        valid = [vote for vote in votes or () if vote is not None]
        bad = len(votes or ()) - len(valid)
        entry.votes += valid
        entry.bad = 0 if valid else BAD_ANSWERS if votes is None else entry.bad + 1
        self._cache.put(key, [entry.votes, entry.bad])
        with self._lock:
            self.useful = self.useful or bool(valid)
            self.counts.bad_answers += bad if valid else max(1, bad)
            if entry.bad >= BAD_ANSWERS:
                self._given_up.append(key)
        self._check_useful(USELESS)

    def _check_useful(self, given_up: int) -> None:
        """Raise LlmError if there is no valid answer, and so many questions are given up."""
        if self.useful or len(self._given_up) < given_up:
            return
        self._cache.forget(self._given_up)
        raise LlmError(
            f"{self._settings.model} at {self._settings.host}: no valid answer to {len(self._given_up)} "
            f"questions, the last was {self._reason!r} (try the model by hand; set another model or route)"
        )
