"""Servers on loopback, and teachers that ask them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from teachers.llm.settings import AskedHead, LlmSettings
from teachers.llm.teacher import LlmTeacher
from tests.teachers.llm.server import FakeServer

BACKOFF = 0.001
HEADS = (
    AskedHead("intent", "single_label", ("refund", "track", "thank"), {"refund": "wants money back"}),
    AskedHead("flags", "multi_label", ("urgent", "polite")),
)


def some_texts(count: int) -> list[str]:
    """Different texts whose labels of HEADS their words decide."""
    labels, flags = HEADS[0].labels, ("", "urgent", "polite", "urgent polite")
    return [f"{labels[i % 3]} of order {i} please {flags[i % 4]} now" for i in range(count)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key and no proxy of the machine's."""
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[[FakeServer], str]]:
    """A function that runs a server until the test ends, and gives its base URL."""
    with ExitStack() as stack:
        yield lambda fake: stack.enter_context(fake.running())


@pytest.fixture
def llm(serve: Callable[[FakeServer], str], tmp_path: Path) -> Callable[..., LlmTeacher]:
    """A function (server or base URL, heads, settings) that gives a teacher with a cache of this test."""

    def build(fake: FakeServer | str, heads: Any = HEADS, **settings: Any) -> LlmTeacher:
        url = fake if isinstance(fake, str) else serve(fake)
        settings = {"cache": tmp_path / "cache", "timeout": 5.0} | settings
        return LlmTeacher(LlmSettings(url, "open-model", **settings), heads, backoff=BACKOFF)

    return build
