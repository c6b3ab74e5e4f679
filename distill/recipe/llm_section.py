"""The recipe's section on a language model that labels texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from distill.recipe.data_sources import Part

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# what changes how the model is asked, and not what it answers
HOW = {"base_url", "concurrency", "timeout", "max_requests", "api_key_env", "cache"}
HOW |= {"input_price", "output_price", "terms"}


def _questions(value: Any) -> Any:
    """Heads and their questions, from a list of heads."""
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return dict.fromkeys(value)
    if value is None or isinstance(value, Mapping):
        return value
    raise ValueError(f"must be a list of heads, or a question a head, got {value!r}")


class Llm(Part):
    """A language model behind an OpenAI-compatible server, which labels the texts of the data."""

    base_url: str = Field(description="address of the server; most end in /v1")
    model: str = Field(min_length=1, description="name of the model on the server")
    heads: Annotated[dict[str, str | None], Field(min_length=1), BeforeValidator(_questions)] | None = Field(
        None,
        description="heads to ask about, a list, or `{HEAD: question}`; default: all but those of `merge`",
    )
    instructions: str | None = Field(
        None, description="what stands before each question, such as what the texts are"
    )
    route: Literal["logprobs", "samples", "systemone"] | None = Field(
        None,
        description="where probabilities come from: log probabilities of one-token answers, shares of "
        "samples, or `/v1/systemone`; default: what the server is found to have",
    )
    samples: int = Field(5, ge=1, le=100, description="answers to a question, where probabilities are shares")
    concurrency: int = Field(8, ge=1, le=256, description="most requests at a time")
    timeout: float = Field(60.0, gt=0, description="seconds that a request may wait for the server")
    max_requests: int | None = Field(
        None, ge=1, description="requests after which a command stops; answers are kept; default: no limit"
    )
    input_price: float = Field(0.0, ge=0, description="of a million tokens read, for the estimate")
    output_price: float = Field(0.0, ge=0, description="of a million tokens written, for the estimate")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable with the key")
    cache: str | None = Field(
        None, description="folder of the answers; default: tinyheads/llm in the user's folder of caches"
    )
    terms: str | None = Field(None, description="terms of use of what it answers, for the manifest")

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            valid = False
        if not valid or not url.isprintable() or " " in url:
            raise ValueError("must be an address such as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query (give the key in the environment)")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str) -> str:
        if not VARIABLE.match(name):  # not repeated: it may be the key itself
            raise ValueError("must be the name of an environment variable, not the key")
        return name


def what_is_asked(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """The section `teacher` of a recipe as JSON, without what changes only how a language model is asked."""
    if not (llm := teacher.get("llm")):
        return dict(teacher)
    return {**teacher, "llm": {name: value for name, value in llm.items() if name not in HOW}}
