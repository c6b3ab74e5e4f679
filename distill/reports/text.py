"""Names, labels and other text of a run, as plain text in HTML, in Markdown and on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

JOINERS = "\u200c\u200d"  # of letters and emoji; they steer nothing

_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)")


def one_line(text: object) -> str:
    """The text in one line, with U+FFFD for characters that steer a terminal."""
    line = " ".join(str(text).split())
    return "".join(letter if letter.isprintable() or letter in JOINERS else "\ufffd" for letter in line)


def markdown(text: object) -> str:
    """The text, of which Markdown renders every character as it is; also in a table."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def code(text: object) -> str:
    """The text as a code span; its fence is longer than any in the text."""
    line = one_line(text)
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def html(value: Any) -> Any:
    """A JSON value whose strings, keys included, are escaped and in one line."""
    if isinstance(value, dict):
        return {html(key): html(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [html(item) for item in value]
    return escape(one_line(value)) if isinstance(value, str) else value


def abstention(found: Mapping[str, Any] | None) -> Iterator[str]:
    """Sentences on when a head abstains and how it does on test, from `abstention` of analysis.json."""
    if not found:
        return
    wanted, rule = found["wanted"] or {}, found["rule"]
    promise = f"{wanted.get('accuracy', 0):g} with confidence {wanted.get('confidence', 0):g}"
    if wanted and not rule:
        yield f"The head always answers: no threshold on validation has an accuracy of {promise}."
    elif rule:
        chosen = f"The head abstains below {_a(rule['score'])} of {rule['threshold']:.6g}"
        if rule["accuracy"] is None:
            yield f"{chosen}, which answers {rule['coverage']:.1%} of the validation texts."
        else:
            yield f"{chosen}: the promised accuracy of its answers is {promise}."
        test = found["answered"]["test"]
        if test["answered"]:
            yield (
                f"On test it answers {test['coverage']:.1%} of {test['texts']:,} labelled texts, "
                f"{test['accuracy']:.2%} of them right; {test['accuracy_on_all']:.2%} of all would be right."
            )
        if test["oos_refused"] is not None:
            yield f"Of the test texts of no class, {test['oos_refused']:.1%} get no answer."
    if values := {name: x for name, x in found["auroc"]["test"].items() if x is not None}:
        scores = ", ".join(f"{name} {x:.4f}" for name, x in values.items())
        yield f"AUROC of test texts that have a class against those of none: {scores}."


def _a(score: str) -> str:
    return f"an {score}" if score[0] in "aeiou" else f"a {score}"
