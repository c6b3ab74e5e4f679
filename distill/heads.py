"""Classification heads: their names, kinds and ordered labels, and their columns in a row of logits.

`prepare` fixes the order of the heads and of the labels in each. Logits, ONNX outputs and the manifest keep
this order. The logits of all heads are side by side in one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# an embedding head has no labels: a pretrained student learns the teacher's embedding of a text with it
Kind = Literal["single_label", "multi_label", "embedding"]
UNLABELLED = -100  # class index of a text without a label; torch's ignore_index
UNKNOWN = -1  # in every cell of a multi_label row without labels
# the logit of a label that a network was not asked for: its probability is 0, its loss is finite
NOT_SCORED = -1e4

# metrics by kind; the first one compares epochs and variants
METRICS: dict[Kind, tuple[str, ...]] = {
    "single_label": ("accuracy", "macro_f1", "log_loss", "ece"),
    "multi_label": (
        "micro_f1",
        "macro_f1",
        "subset_accuracy",
        "label_accuracy",
        "log_loss",
        "roc_auc",
        "average_precision",
    ),
    "embedding": ("cosine",),
}


@dataclass(frozen=True)
class Head:
    """A head: its name, kind, labels in the order of its logits, and weight in the loss.

    A packed network also reads the head's `hypothesis` and its `descriptions` of labels, by label.
    `class_weights` are those of the labels in the hard loss, in order; None if all are 1.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    weight: float = 1.0
    hypothesis: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict, hash=False)
    class_weights: tuple[float, ...] | None = None

    @property
    def first_metric(self) -> str:
        """The first metric of the head's kind."""
        return METRICS[self.kind][0]

    @property
    def column(self) -> str:
        """The column of the prepared splits that holds this head's labels."""
        return f"head_{self.name}"

    def to_json(self) -> dict[str, Any]:
        """The head as a JSON object."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Head:
        """A head from its JSON object."""
        ordered: dict[str, Any] = {
            key: tuple(data[key]) for key in ("labels", "class_weights") if key in data
        }
        return Head(**{**data, **ordered})


def width(heads: Sequence[Head]) -> int:
    """The number of logits of a text over all heads."""
    return sum(len(head.labels) for head in heads)


def columns(heads: Sequence[Head]) -> Iterator[tuple[Head, slice]]:
    """Each head and its slice of a row of logits, in order."""
    start = 0
    for head in heads:
        stop = start + len(head.labels)
        yield head, slice(start, stop)
        start = stop
