"""HTTP to the server: the key, back-off, Retry-After, and the limit of requests."""

from __future__ import annotations

import json
import logging
import os
import random
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from time import monotonic
from typing import Any

import httpx

from teachers.llm.settings import LlmError, LlmSettings

LOG = logging.getLogger("tinyheads")
TRIES, FIRST_TRIES = 8, 4  # of a request; the latter until the server has answered one
LONGEST_BACKOFF, LONGEST_WAIT = 60.0, 300.0  # seconds; the latter that Retry-After may ask for
RETRIED = (408, 409, 425, 429)
NOT_THERE = (501, 505)  # of the 5xx, those that will not pass
MESSAGE = 200  # characters of a server's message


class StoppedError(Exception):
    """Another thread has stopped the asking."""


class UnavailableError(Exception):
    """The server did not answer a request in all its tries.

    Attributes:
        reached: Whether it could be reached.
    """

    def __init__(self, message: str, *, reached: bool) -> None:
        super().__init__(message)
        self.reached = reached


class RefusedError(Exception):
    """The server refuses a request: a 4xx.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}{message and ': '}{message}")
        self.status = status


class RequestLimitError(LlmError):
    """As many requests were sent as `max_requests` allows."""


class Client:
    """Sends JSON to one server; for use by many threads.

    Attributes:
        requests: The number that was sent, repeated ones included.
        retries: The number that was repeated.
    """

    def __init__(self, settings: LlmSettings, *, backoff: float = 0.5) -> None:
        """A client of the server in the settings.

        Args:
            settings: Of the teacher.
            backoff: Seconds before the first repetition; doubled for each further one.

        Raises:
            LlmError: The key in the environment cannot be sent.
        """
        self._settings, self._backoff = settings, backoff
        self._key = os.environ.get(settings.api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise LlmError(f"{settings.api_key_env}: is no key, expected ASCII characters (set it again)")
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        self._lock = Lock()
        self._pause_until = 0.0
        self._answered = False
        self.requests = self.retries = 0

    def post(self, path: str, body: dict[str, Any], stop: Event) -> Any:
        """The JSON of the server's answer, None if it is no JSON.

        Args:
            path: Below the base URL.
            body: Of the request.
            stop: Ends all waiting when it is set.

        Raises:
            RefusedError: The server refuses this request.
            UnavailableError: It did not answer in all tries.
            RequestLimitError: `max_requests` are sent.
            LlmError: It refuses the key, or asks to wait too long.
            StoppedError: `stop` is set.
        """
        problem, reached, delay, tries = "", False, 0.0, 0
        while tries < (TRIES if self._answered else FIRST_TRIES):
            if stop.wait(max(delay, self._pause_until - monotonic(), 0.0)):
                raise StoppedError
            self._count(repeated=tries > 0)
            delay = min(LONGEST_BACKOFF, self._backoff * 2**tries) * random.uniform(0.5, 1.5)
            tries += 1
            try:
                response = self._http.post(f"{self._settings.base_url.rstrip('/')}/{path}", json=body)
            except httpx.RequestError as error:
                problem = type(error).__name__ + (f": {error}" if str(error) else "")
                continue
            reached = True
            if response.is_success:
                self._answered = True
                return _json(response)
            status = response.status_code
            if status not in RETRIED and (status < 500 or status in NOT_THERE):
                raise self._refusal(response)
            problem = f"{status} {self._message(response) or response.reason_phrase}"
            if (asked := _retry_after(response)) is not None:
                delay = self._pause(asked, delay)
        raise UnavailableError(problem, reached=reached)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _count(self, *, repeated: bool) -> None:
        most = self._settings.max_requests
        with self._lock:
            if most is not None and self.requests >= most:
                raise RequestLimitError(f"max_requests: {most} requests are sent")
            self.requests += 1
            self.retries += repeated

    def _pause(self, asked: float, delay: float) -> float:
        """All threads wait for as long as the server asks; returns the seconds of this one."""
        if asked > LONGEST_WAIT:
            raise LlmError(
                f"{self._settings.host} asks to wait for {asked:.0f} s (run the same command again then; "
                "answers so far are kept)"
            )
        self._pause_until = max(self._pause_until, monotonic() + asked)
        return asked + min(delay, 1.0) * random.random()

    def _refusal(self, response: httpx.Response) -> Exception:
        status, variable = response.status_code, self._settings.api_key_env
        if status in (401, 403):
            state = "the key in" if self._key else "the request without a key, expected one in"
            return LlmError(f"{self._settings.host} refuses {state} {variable} ({status}) (set {variable})")
        if response.is_redirect:
            return LlmError(
                f"{self._settings.host} redirects to another address ({status}) (set base_url to it)"
            )
        return RefusedError(status, self._message(response))

    def _message(self, response: httpx.Response) -> str:
        """What the server says of an error, in one line without the key."""
        found = _json(response)
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and key in found:
                found = found[key]
        return self.readable(found if isinstance(found, str) else json.dumps(found) if found else "")

    def readable(self, text: str) -> str:
        """What a server wrote, short, in one line and without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join("".join(x if x.isprintable() else " " for x in text).split())[:MESSAGE]


def _json(response: httpx.Response) -> Any:
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds that a server asks to wait: a number or a date."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
