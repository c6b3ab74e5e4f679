"""The README.md of a bundle: what it predicts, on what it was trained, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.recipe.data_section import Hub
from distill.recipe.schema import Recipe

SHOWN = 12  # labels of a head that are listed before the rest is counted


def figure(value: float | None) -> str:
    """A metric as people read it; `-` where the texts cannot tell."""
    return "-" if value is None else f"{value:.4f}"


def model_card(
    recipe: Recipe,
    heads: Sequence[Any],
    checked: Mapping[str, Any],
    rows: Mapping[str, int],
    sizes: Mapping[str, int],
    max_length: int,
) -> str:
    """A model card in Markdown, with the front matter that hubs read.

    Args:
        recipe: Of the run.
        heads: The bundle's heads in order, with `name`, `kind`, `labels`.
        checked: Figures of the stage `check`.
        rows: Texts a split.
        sizes: Bytes of each form, `{"fp32_bytes": n}`.
        max_length: Tokens that are read of a text.
    """
    front = ["---", "library_name: tinyheads", "pipeline_tag: text-classification", "---"]
    lines = [*front, "", f"# {recipe.name}", "", "A text classifier of these heads:", ""]
    for head in heads:
        labels = ", ".join(head.labels[:SHOWN])
        more = f" and {len(head.labels) - SHOWN} more" if len(head.labels) > SHOWN else ""
        lines.append(f"- **{head.name}** ({head.kind}, {len(head.labels)} labels): {labels}{more}")
    sources = [recipe.data.train, *recipe.data.unlabeled]
    named = ", ".join(f"`{s.hub if isinstance(s, Hub) else s}`" for s in sources)
    lines += [
        *("", "```python", "from export import Classifier", ""),
        *('classifier = Classifier.load("bundle/")', 'classifier("...")', "```", ""),
        *(f"Of a text it reads the first {max_length} tokens.", ""),
        *("## Training", ""),
        f"Distilled from {_taught_by(recipe)} on {rows['train']} labelled texts of "
        f"{named}; {rows['unlabeled']} unlabelled texts. "
        f"Licence of the data: {recipe.data.licence or 'not given'}.",
        *("", "## Measured", "", f"On {rows['test']} test texts.", ""),
    ]
    for name, quality in checked["quality"].items():
        metrics = list(quality["test"]["student"])
        lines += [f"| {name} | {' | '.join(metrics)} |", f"|---|{'---|' * len(metrics)}"]
        for form, values in quality["test"].items():
            lines.append(f"| {form} | {' | '.join(figure(values[m]) for m in metrics)} |")
        lines.append("")
    for name, faults in checked.get("allowed", {}).items():
        lines += [f"int8 was let through though {name} {fault}." for fault in faults]
    worst = max(head["max_difference"] for head in checked["parity"]["heads"].values())
    lines.append(f"Largest difference of a logit between torch and ONNX fp32: {worst:.1e}.")
    sized = ", ".join(f"{n.removesuffix('_bytes')} {b / 1e6:.2f} MB" for n, b in sizes.items())
    return "\n".join([*lines, f"Size of the model file: {sized}.", ""])


def _taught_by(recipe: Recipe) -> str:
    if networks := recipe.teacher.networks:
        return "the networks " + ", ".join(f"`{folder}`" for folder in networks)
    return f"`{recipe.teacher.encoder}`, fine-tuned"
