"""The sections of a page that show one head: how good it is, where it fails, on which texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill.reports import charts, page
from distill.reports.page import Html
from distill.reports.text import abstention, one_line

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)  # of the texts that are answered, whose thresholds are listed
FLOOR = "TF-IDF floor"
CHARACTERS = 300  # of a text
TEXTS = 8  # of a list that are not folded

Analysis = Mapping[str, Any]  # of a head, as distill.evaluation.analysis writes it


def number(value: float | None) -> str:
    """A metric with four decimals; a dash if it is undefined."""
    return "–" if value is None else f"{value:.4f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash if it is undefined."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def of_texts(labelled: int, texts: int) -> str:
    """How many of some texts are labelled."""
    return f"{labelled:,}" if labelled == texts else f"{labelled:,} of {texts:,}"


def words(name: str) -> str:
    """The name of a metric in words."""
    known = {"ece": "ECE", "roc_auc": "ROC AUC", "micro_f1": "micro F1", "macro_f1": "macro F1"}
    return known.get(name, one_line(name).replace("_", " "))


def quality_table(
    values: Mapping[str, Mapping[str, float | None]], intervals: Mapping[str, Any], where: str
) -> Html:
    """A row a form, with the interval of the first metric.

    Args:
        values: Metrics by form.
        intervals: `[low, high]` of the first metric by form.
        where: The texts that the metrics are on.
    """
    metrics = list(dict.fromkeys(name for row in values.values() for name in row))
    first, *others = metrics
    known = {form: pair for form, pair in intervals.items() if form in values and pair}
    scale = _scale([x for pair in known.values() for x in pair])
    header = ["", words(first), *(["95 % interval", ""] if known else []), *map(words, others)]
    rows = []
    for form, row in values.items():
        pair = known.get(form)
        drawn = [
            f"{pair[0]:.4f}–{pair[1]:.4f}" if pair else "–",
            page.interval(row.get(first), pair[0], pair[1], scale) if pair else "",
        ]
        name = FLOOR if form == "floor" else form
        rows.append(
            [name, number(row.get(first)), *(drawn if known else []), *(number(row.get(m)) for m in others)]
        )
    return page.table(header, rows, f"metrics on {where}")


def details_of_head(analysis: Analysis, form: str, where: str, review: str | None = None) -> Html:
    """Everything that the analysis of a head holds, as figures and tables.

    Args:
        analysis: Of the head.
        form: The form of the classifier that it is of.
        where: The texts, such as `test texts`.
        review: The path of the CSV file of labels to review.
    """
    labelled = f"{form} on the {analysis['labelled']:,} labelled {where}"
    parts: list[Html] = []
    if sentences := [*abstention(analysis.get("abstention"))]:
        parts.append(page.paragraph(" ".join(sentences)))
    elif some := answered_by(analysis):
        about = f"The head abstains: it answers {of_texts(some['answered'], some['texts'])} labelled texts, "
        parts.append(page.paragraph(f"{about}{percent(some['accuracy'], 2)} of them right."))
    if analysis["labelled"]:
        parts += _figures(analysis, labelled)
        parts += _classes(analysis, labelled)
        parts += _confusions(analysis, labelled)
    parts += _texts(analysis, form, where)
    if suspects := analysis.get("suspect_labels"):
        title = page.heading("Labels to review")
        note = "The teacher finds another label likely; the most suspect come first."
        more = page.join([" All of them are in ", page.tag("code", review), "."]) if review else ""
        rows = [
            [
                _text(row),
                row["label"],
                row["suggested"],
                percent(row["probability"]),
                f"{row['split']}, {row['row']}",
            ]
            for row in suspects
        ]
        header = ("text", "label", "suggested", "probability", "row")
        listed = page.table(header, rows, "labels to review", words=(0, 1, 2), shown=TEXTS)
        parts += [title, page.paragraph(note, more, class_="quiet"), listed]
    return page.join(parts)


def answered_by(analysis: Analysis) -> Mapping[str, Any] | None:
    """The coverage and accuracy of a head that abstains and that answers a text; else None."""
    run = ((analysis.get("abstention") or {}).get("answered") or {}).get("test")
    some = run or analysis.get("answered")
    return some if some and some["answered"] else None


def _figures(analysis: Analysis, labelled: str) -> Iterable[Html]:
    figures, name = [], analysis["kind"]
    if bins := analysis.get("reliability"):
        what = "each label" if name == "multi_label" else "the predicted label"
        note = f"Calibrated probability of {what}; {labelled}."
        title = "Reliability"
        figures.append(page.figure(charts.svg(charts.reliability(bins), f"{title}: {labelled}"), title, note))
    if points := analysis.get("coverage"):
        title = "Coverage against accuracy"
        chosen = answered_by(analysis)
        picture = charts.svg(charts.coverage(points, chosen), f"{title}: {labelled}")
        table = page.details("Thresholds", _coverage(points))
        note = f"If only the most confident answers are used; {labelled}."
        note += " The ring is where the head abstains." if chosen else ""
        figures.append(page.tag("div", page.figure(picture, title, note), table))
    wide: list[Html] = []
    if (matrix := analysis.get("confusion")) and matrix["labels"]:
        labels, counts = matrix["labels"], matrix["counts"]
        title = "Confusion matrix"
        rest = len(analysis["labels"]) - len(labels)
        most = f" The {len(labels)} labels with the most errors; {rest} more are left out." if rest else ""
        note = "A row is a label, a column what is predicted; darker is a larger share of the row; "
        note += f"{labelled}.{most}"
        picture = charts.svg(charts.matrix(labels, counts), f"{title}: {labelled}")
        small = len(labels) <= charts.SMALL
        (figures if small else wide).append(page.figure(picture, title, note, wide=True))
    if figures:
        yield page.grid(*figures)
    yield from wide


def _coverage(points: Sequence[Mapping[str, Any]]) -> Html:
    rows = []
    for share in SHARES:
        point = min(points, key=lambda one: abs(one["coverage"] - share))
        rows.append((percent(point["coverage"], 0), percent(point["accuracy"]), number(point["threshold"])))
    header = ("texts answered", "accuracy", "least probability")
    return page.table(header, list(dict.fromkeys(rows)), "thresholds by coverage", words=())


def _classes(analysis: Analysis, labelled: str) -> Iterable[Html]:
    thresholds, train = analysis.get("thresholds"), analysis.get("train_labels")
    wanted = analysis.get("wanted_precision") or {}
    header = ["label", "F1", "", "precision", "recall", "texts", "predicted"]
    header += ["average precision"] if thresholds else []
    header += ["training texts"] if train else []
    header += ["threshold"] if thresholds else []
    header += ["wanted precision"] if wanted else []
    rows = []
    for row in analysis["classes"]:
        name = row["label"]
        cells = [page.short(name), number(row["f1"]), page.bar(row["f1"]), number(row["precision"])]
        cells += [number(row["recall"]), f"{row['support']:,}", f"{row['predicted']:,}"]
        cells += [number(row.get("average_precision"))] if thresholds else []
        cells += [f"{train[name]:,}" if name in train else "–"] if train else []
        cells += [number(thresholds.get(name))] if thresholds else []
        cells += [number(wanted.get(name))] if wanted else []
        rows.append(cells)
    yield page.heading("Labels, worst first")
    yield page.paragraph(f"Metrics of {labelled}.", class_="quiet")
    if wanted:
        rated = [row for row in analysis["classes"] if row["label"] in wanted and row["predicted"]]
        kept = sum(row["precision"] >= wanted[row["label"]] for row in rated)
        yield page.paragraph(
            f"Of {len(wanted)} labels with a wanted precision, {len(rated)} are predicted, and {kept} of "
            "these have it here. A label whose threshold is 1 has it at no threshold on validation.",
            class_="quiet",
        )
    yield page.table(header, rows, "metrics of each label")


def _confusions(analysis: Analysis, labelled: str) -> Iterable[Html]:
    if rows := analysis.get("confusions"):
        yield page.heading("Largest confusions")
        cells = [
            (
                page.short(row["label"]),
                page.short(row["predicted"]),
                f"{row['texts']:,}",
                percent(row["share"]),
            )
            for row in rows
        ]
        header = ("label", "predicted", "texts", "of the label")
        yield page.table(header, cells, f"largest confusions, {labelled}", words=(0, 1), shown=10)


def _texts(analysis: Analysis, form: str, where: str) -> Iterable[Html]:
    if rows := analysis.get("disagreements"):
        yield page.heading("Where student and teacher differ most")
        yield page.paragraph(f"Of all {analysis['texts']:,} {where}; the student is {form}.", class_="quiet")
        cells = [
            [
                _text(row),
                "–" if row.get("label") is None else page.short(row["label"]),
                _answer(row["teacher"], row["teacher_probability"]),
                _answer(row["student"], row["student_probability"]),
            ]
            for row in rows
        ]
        header = ("text", "label", "teacher", "student")
        yield page.table(header, cells, "where student and teacher differ", words=range(4), shown=TEXTS)
    if rows := analysis.get("confident_errors"):
        yield page.heading("Confident errors")
        labelled = f"Of the {analysis['labelled']:,} labelled {where}, {form}; the most confident first."
        yield page.paragraph(labelled, class_="quiet")
        cells = [
            [_text(row), page.short(row["label"]), _answer(row["predicted"], row["probability"])]
            for row in rows
        ]
        yield page.table(
            ("text", "label", "predicted"), cells, "confident errors", words=range(3), shown=TEXTS
        )


def _text(row: Mapping[str, Any]) -> Html:
    return page.tag("span", page.short(row["text"], CHARACTERS), class_="long")


def _answer(label: object, probability: float | None) -> Html:
    return page.join([page.short(label), " ", page.tag("span", percent(probability, 0), class_="quiet")])


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that all values are on, with some room."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.08 * (high - low) or 0.01
    return low - room, high + room
