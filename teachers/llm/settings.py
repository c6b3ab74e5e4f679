"""What an LLM teacher is asked with, and the errors of asking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

RouteName = Literal["logprobs", "samples", "systemone"]


class LlmError(Exception):
    """The server cannot be asked, or no more: `teacher.llm: what is wrong (what to do)`."""

    exit_code = 2

    def __init__(self, problem: str) -> None:
        super().__init__(f"teacher.llm: {problem}")


@dataclass(frozen=True)
class AskedHead:
    """A head that the model is asked about.

    Attributes:
        name: Of the head.
        kind: `single_label` or `multi_label`.
        labels: In the order of the logits.
        descriptions: What labels mean, by label.
        question: In place of one that is made of the name.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    question: str | None = None


@dataclass(frozen=True)
class LlmSettings:
    """The server, the model, and how it is asked.

    Attributes:
        base_url: Of the server, which `chat/completions` and `systemone` follow; most end in `/v1`.
        model: Its name on the server.
        instructions: What stands before every question.
        route: Where probabilities come from; None selects what the server has.
        samples: Answers of a question where probabilities are shares of samples.
        concurrency: Most requests at a time.
        timeout: Seconds that a request may wait for the server.
        max_requests: Most requests of one process; None sets no limit.
        input_price: Of a million tokens that the model reads.
        output_price: Of a million tokens that the model writes.
        api_key_env: The environment variable with the key.
        cache: The folder of the answers.
    """

    base_url: str
    model: str
    instructions: str | None = None
    route: RouteName | None = None
    samples: int = 5
    concurrency: int = 8
    timeout: float = 60.0
    max_requests: int | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    api_key_env: str = "OPENAI_API_KEY"
    cache: Path = Path("~/.cache/tinyheads/llm")

    @property
    def host(self) -> str:
        """The server's host and port."""
        parts = urlsplit(self.base_url)
        return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
