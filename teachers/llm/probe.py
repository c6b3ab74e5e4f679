"""What a server can do, tried once: which route gives probabilities."""

from __future__ import annotations

import logging
from dataclasses import replace
from threading import Event

from teachers.llm.client import Client, RefusedError, UnavailableError
from teachers.llm.questions import Question
from teachers.llm.routes import TOP_LOGPROBS, Logprobs, Route, SystemOne, top_logprobs
from teachers.llm.settings import LlmError, LlmSettings, RouteName

LOG = logging.getLogger("tinyheads")
QUESTION = Question("animal", "choice", "Which animal does the text name?", (("cat", None), ("dog", None)))
TEXT = "The dog barks at the postman."
FEWER = 5  # log probabilities that other servers return; fewer are of no use


def probe(client: Client, settings: LlmSettings) -> tuple[RouteName, int]:
    """The route to ask by, and the number of log probabilities that the server returns.

    Raises:
        LlmError: The server cannot be reached, knows no such model, or lacks the route of the settings.
    """
    wanted = settings.route
    if wanted == "samples":
        return wanted, 0
    if wanted in (None, "systemone") and _answers(client, settings, SystemOne()):
        return "systemone", 0
    if wanted in (None, "logprobs"):
        for top in (TOP_LOGPROBS, FEWER):
            if (returned := _answers(client, settings, Logprobs(top))) >= FEWER:
                return "logprobs", min(top, returned)
    about = f"{settings.model} at {settings.host}"
    if wanted is not None:
        lacks = "/systemone" if wanted == "systemone" else "log probabilities of one-token answers"
        raise LlmError(f"route: {about} returns no {lacks} (leave out route, or set route: samples)")
    LOG.warning(
        f"teacher.llm: {about} returns no log probabilities of one-token answers, so probabilities are "
        f"shares of {settings.samples} samples"
    )
    return "samples", 0


def _answers(client: Client, settings: LlmSettings, route: Route) -> int:
    """0 if the probe's question is not answered, the number of log probabilities if it is, or 1."""
    try:
        reply = client.post(
            route.path, route.body(replace(settings, instructions=None), [QUESTION], TEXT, 1), Event()
        )
    except RefusedError as error:
        if error.status == 404 and route.name != "systemone":
            raise not_found(settings, error) from None
        return 0
    except UnavailableError as error:
        if error.reached and route.name == "systemone":  # some proxies answer so for an unknown path
            return 0
        raise LlmError(
            f"{settings.host} does not answer: {error} (check base_url, start the server)"
        ) from None
    if route.votes_in(reply, [QUESTION]) == [[None]]:
        return 0
    return 1 if route.name == "systemone" else len(top_logprobs(reply))


def not_found(settings: LlmSettings, error: RefusedError) -> LlmError:
    """The error of a server without the path or the model."""
    todo = "set base_url, which mostly ends in /v1, and model"
    return LlmError(
        f"{settings.host} does not know the route or the model {settings.model!r}: {error} ({todo})"
    )
