"""What a server can do, tried once: which route gives probabilities."""

from __future__ import annotations

import logging
from dataclasses import replace
from threading import Event

from teachers.llm.client import Client, RefusedError, UnavailableError
from teachers.llm.questions import Question
from teachers.llm.routes import (
    TOP_LOGPROBS,
    Logprobs,
    Route,
    Samples,
    SystemOne,
    content_of,
    top_logprobs,
)
from teachers.llm.settings import LlmError, LlmSettings

LOG = logging.getLogger("tinyheads")
QUESTION = Question("animal", "choice", "Which animal does the text name?", (("cat", None), ("dog", None)))
TEXT = "The dog barks at the postman."
PROBES = 3
FEWER = 5  # log probabilities that other servers return; fewer are of no use


def probe(client: Client, settings: LlmSettings) -> Route:
    """The route to ask by.

    Raises:
        LlmError: The server cannot be reached, knows no such model, refuses a plain question, or lacks the
            route of the settings.
    """
    wanted = settings.route
    if wanted in (None, "systemone") and _returned(client, settings, SystemOne()):
        return SystemOne()
    if wanted in (None, "logprobs"):
        for top in (TOP_LOGPROBS, FEWER):
            if (returned := _returned(client, settings, Logprobs(top))) >= FEWER:
                return Logprobs(min(top, returned))
    about = f"{settings.model} at {settings.host}"
    if wanted in ("systemone", "logprobs"):
        lacks = "/systemone" if wanted == "systemone" else "log probabilities of one-token answers"
        raise LlmError(f"route: {about} returns no {lacks} (leave out route, or set route: samples)")
    if wanted is None:
        LOG.warning(
            f"teacher.llm: {about} returns no log probabilities of one-token answers, so probabilities are "
            f"shares of {settings.samples} samples"
        )
    several = settings.samples > 1 and _returned(client, settings, Samples(2)) > 1
    if not several:
        _returned(client, settings, Samples(1), required=True)
    return Samples(settings.samples, several=several)


def _returned(client: Client, settings: LlmSettings, route: Route, *, required: bool = False) -> int:
    """The valid answers, or log probabilities, to the probe's question; 0 if the server lacks the route."""
    body = route.body(replace(settings, instructions=None), [QUESTION], TEXT, route.votes)
    for _ in range(PROBES):  # an answer may be bad by chance
        try:
            reply = client.post(route.path, body, Event())
        except RefusedError as error:
            if error.status == 404 and route.name != "systemone":
                raise not_found(settings, error) from None
            if required:
                raise LlmError(f"{settings.host} refuses a request: {error} (set another model)") from None
            return 0
        except UnavailableError as error:
            if error.reached and route.name == "systemone":  # some proxies answer so for an unknown path
                return 0
            todo = "check base_url, start the server"
            raise LlmError(f"{settings.host} does not answer: {error} ({todo})") from None
        valid = sum(vote is not None for vote in route.votes_in(reply, [QUESTION])[0])
        if route.name != "logprobs":
            if valid:
                return valid
        elif valid or (content_of(reply) and not top_logprobs(reply)):
            return len(top_logprobs(reply))
    return 0


def not_found(settings: LlmSettings, error: RefusedError) -> LlmError:
    """The error of a server without the path or the model."""
    todo = "set base_url, which mostly ends in /v1, and model"
    return LlmError(
        f"{settings.host} does not know the route or the model {settings.model!r}: {error} ({todo})"
    )
