"""The model card of a bundle, its README.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.heads import Head
from distill.recipe.data_sources import Hub
from distill.recipe.schema import Recipe
from distill.reports.card_metadata import front_matter
from distill.reports.text import abstention, code, markdown

SHOWN = 12  # labels of a head that are listed

USAGE = """\
```python
from tinyheads import Classifier

classifier = Classifier.from_pretrained("ORG/NAME")  # this repository, or the folder of the bundle
classifier("...")
```
"""


PACKED_USAGE = """\
Labels are input: the classifier scores those above, or others that are given with a call.

```python
from tinyheads import Classifier

classifier = Classifier.from_pretrained("ORG/NAME")  # this repository, or the folder of the bundle
classifier("...", heads=["HEAD"], labels=["LABEL", "LABEL"])
```
"""


def _teachers(recipe: Recipe) -> Iterator[str]:
    """The teachers with the heads that they teach, unless one teaches all."""
    teacher = recipe.teacher
    if teacher.networks:
        yield "the networks " + ", ".join(map(code, teacher.networks))
        return
    if soft := teacher.soft_labels:
        yield "soft labels of " + ", ".join(map(code, soft.files)) + _terms(soft.terms)
    if llm := teacher.llm:
        which = f" for {', '.join(map(markdown, llm.heads))}" if llm.heads else ""
        yield f"the language model {code(llm.model)}{which}{_terms(llm.terms)}"
    merge = teacher.merge or {}
    taught: dict[tuple[str, str | None], list[str]] = {}
    for head, models in merge.items():
        for one in models:
            taught.setdefault((one.model, one.terms), []).append(head)
    for (model, terms), heads in taught.items():
        yield f"{code(model)} for {', '.join(map(markdown, heads))}{_terms(terms)}"
    if others := [head for head in recipe.heads if head not in merge]:
        which = f" for {', '.join(map(markdown, others))}" if merge else ""
        yield f"{code(teacher.encoder)}, fine-tuned{which}"


def _terms(terms: str | None) -> str:
    return f" (terms of use: {markdown(terms)})" if terms else ""


def format_metric(value: float | None) -> str:
    """A metric with four decimals; `-` if it is undefined."""
    return "-" if value is None else f"{value:.4f}"


def labelled_texts(quality: Mapping[str, Any]) -> str:
    """How many test texts are labelled for a head: all of them, or how many of how many."""
    labelled, texts = quality["labelled"], quality["texts"]
    return f"{texts:,}" if labelled == texts else f"{labelled:,} of {texts:,}"


def model_card(
    recipe: Recipe,
    heads: Sequence[Head],
    checked: Mapping[str, Any],
    rows: Mapping[str, int],
    labelled: Mapping[str, Mapping[str, int]],
    sizes: Mapping[str, int],
    max_length: int,
    analysed: Mapping[str, Any],
    start: str,
) -> str:
    """A model card in Markdown, with the front matter that model hubs read.

    Args:
        recipe: Recipe of the run.
        heads: Heads of the bundle in order.
        checked: Metrics of the stage check.
        rows: Number of texts by split.
        labelled: Number of labelled texts by head and split.
        sizes: Size of the model files, `{"fp32_bytes": n}`.
        max_length: Number of tokens to which texts are truncated.
        analysed: Heads of analysis.json.
        start: How the student was initialised.
    """
    form = "int8" if "int8_bytes" in sizes else "fp32"
    lines = [
        front_matter(recipe, checked, start, form),
        "",
        f"# {markdown(recipe.name)}",
        "",
        "A text classifier with these heads:",
        "",
    ]
    for head in heads:
        labels = ", ".join(map(markdown, head.labels[:SHOWN]))
        more = f" and {len(head.labels) - SHOWN} more" if len(head.labels) > SHOWN else ""
        lines.append(f"- **{markdown(head.name)}** ({head.kind}, {len(head.labels)} labels): {labels}{more}")
    teacher = "; ".join(_teachers(recipe))
    heads_labelled = ", ".join(
        f"{markdown(name)}: {counts['train']:,} labelled" for name, counts in labelled.items()
    )
    texts = f"{rows['train']:,} for training ({heads_labelled}), {rows['unlabeled']:,} unlabelled"
    if recipe.data.train is None:
        texts = f"{rows['train']:,} for training, none labelled"
    train = [source.train for source in recipe.data.sources if source.train is not None]
    sources = [*train, *recipe.data.unlabeled]
    usage = USAGE
    if recipe.student.network == "packed":
        usage = PACKED_USAGE.replace("HEAD", heads[0].name)
    names = ", ".join(code(source.hub if isinstance(source, Hub) else source) for source in sources)
    lines += [
        *("", usage, f"Texts are truncated to {max_length} tokens.", ""),
        *("## Training", "", f"- Teacher: {teacher}", f"- Data: {names}"),
        f"- Texts: {texts}",
        f"- Licence of the data: {markdown(recipe.data.licence or 'not specified')}",
        *(
            "",
            "## Results",
            "",
            "Metrics on the labelled test texts of each head, the first with its 95 % interval:",
            "",
        ),
    ]
    for name, quality in checked["quality"].items():
        if quality["labelled"]:
            metrics = list(quality["test"]["student"])
            title = f"{markdown(name)}, {labelled_texts(quality)} texts"
            lines += [
                f"| {title} | {' | '.join(map(markdown, metrics))} |",
                f"|---|{'---|' * len(metrics)}",
            ]
            intervals, floor = (analysed.get(name, {}).get(key) or {} for key in ("intervals", "floor"))
            for form, values in {**quality["test"], **({"floor": floor} if floor else {})}.items():
                cells = [format_metric(values.get(metric)) for metric in metrics]
                if pair := intervals.get(form):
                    cells[0] += f" ({pair[0]:.4f} to {pair[1]:.4f})"
                title = "TF-IDF and logistic regression" if form == "floor" else form
                lines.append(f"| {markdown(title)} | {' | '.join(cells)} |")
        else:
            lines.append(f"{markdown(name)}: no test text is labelled.")
        if quality["agreement"] is not None:
            agreement = f"{quality['agreement']:.1%} of {quality['texts']:,} texts"
            lines += ["", f"Agreement with the teacher: {agreement}."]
        if sentences := [*abstention(analysed.get(name, {}).get("abstention"))]:
            lines += ["", " ".join(map(markdown, sentences))]
        lines.append("")
    for name, failures in checked["allowed"].items():
        lines += [
            f"Published although int8 head {markdown(repr(name))} {markdown(failure)}."
            for failure in failures
        ]
    for name, failures in checked["noise"].items():
        lines += [f"The int8 head {markdown(repr(name))} {markdown(failure)}." for failure in failures]
    largest = max(head["max_difference"] for head in checked["parity"]["heads"].values())
    lines.append(f"Largest difference of a logit between torch and ONNX fp32: {largest:.1e}.")
    files = ", ".join(f"{name.removesuffix('_bytes')} {n / 1e6:.2f} MB" for name, n in sizes.items())
    return "\n".join([*lines, f"Size of the model file: {files}.", ""])
