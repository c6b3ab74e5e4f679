"""report.html: the page of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distill.reports import charts, page
from distill.reports.about_run import kept_lines
from distill.reports.heads import FLOOR, details_of_head, number, of_texts, percent, quality_table, words
from distill.reports.page import Html
from distill.reports.style import SERIES
from distill.reports.text import one_line

REVIEW = "stages/check/label_review.csv"
SPLITS = ("train", "validation", "test")
Report = Mapping[str, Any]


def run_page(report: Report) -> str:
    """The page of a run, from the content of report.json."""
    intro = [
        *_refusals(report),
        page.paragraph(*_origin(report), class_="lede"),
        page.paragraph(*_texts(report), class_="quiet"),
        page.tiles(_tiles(report)),
        *_notices(report),
    ]
    sections = [
        ("Quality", _quality(report)),
        *((name, _head(name, head, report)) for name, head in report["heads"].items()),
        ("Training", page.join(_training(report))),
        ("Settings", page.join(_settings(report))),
        ("Size and speed", page.join(_speed(report))),
        ("Data", page.join(_data(report))),
        ("Stages", _stages(report)),
    ]
    return page.page(report["name"], intro, [pair for pair in sections if pair[1]], kind="Run report")


def _origin(report: Report) -> Iterable[object]:
    """What was distilled from what."""
    teacher = report["teacher"]
    names = [page.tag("code", page.short(name)) for name in teacher["names"]]
    what = "network" if teacher["adopted"] else "teacher" if teacher.get("merged") else "fine-tuned encoder"
    yield f"The {what}{'s' * (len(names) > 1)} "
    for place, name in enumerate(names):
        yield page.join([", " if place else "", name])
    shape = "" if teacher.get("merged") else _shape(teacher)
    yield f"{shape} taught a student{_shape(report['student'])}."


def _shape(network: Mapping[str, Any]) -> str:
    parts = []
    if network.get("parameters"):
        parts.append(f"{_millions(network['parameters'])} parameters")
    if network.get("layers"):
        layers = "1 layer" if network["layers"] == 1 else f"{network['layers']} layers"
        parts.append(f"{layers} of width {network['hidden']}")
    return f" ({', '.join(parts)})" if parts else ""


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M"


def _texts(report: Report) -> Iterable[object]:
    rows = report["rows"]
    yield f"{rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test and "
    yield f"{rows['unlabeled']:,} unlabelled texts; seed {report['seed']}. "
    yield "Metrics are on the labelled test texts of each head, agreement is on all test texts."
    if start := report["student"].get("initialisation"):
        yield page.join([" Initialisation of the student: ", page.short(start, 300), "."])


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    artefact = report["artefact"]
    form = "int8" if "int8_bytes" in artefact else "fp32"
    yield f"{artefact[f'{form}_bytes'] / 1e6:.2f} MB", f"model file, {form}"
    yield _millions(artefact["parameters"]), "parameters of the student"
    if latency := report.get("latency_ms"):
        yield f"{latency['p50']:.2f} ms", f"median latency of a text of {latency['tokens']} tokens"
        yield f"{report['throughput']:,.0f}", f"texts per second, threads: {report['throughput_threads']}"
    retained = [head["retention"] for head in report["heads"].values() if head["retention"] is not None]
    if retained:
        yield percent(sum(retained) / len(retained)), "of the teacher's quality, mean of the heads"
    yield _duration(sum(stage["seconds"] for stage in report["stages"].values())), "duration of the run"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _refusals(report: Report) -> Iterator[Html]:
    if refused := report["refused"]:
        yield page.notice("Refused: no bundle was published", refused, bad=True)


def _notices(report: Report) -> Iterator[Html]:
    accepted = [
        f"Head {name!r} {line}{why}"
        for key, why in (("allowed", ": allowed (gates.allow)"), ("noise", ""))
        for name, lines in report[key].items()
        for line in lines
    ]
    if accepted:
        yield page.notice("Accepted changes by int8", accepted)
    if kept := [*kept_lines(report)]:
        yield page.notice("Heads of an earlier run", kept)
    if warnings := report["warnings"]:
        yield page.notice("Data", warnings)


def _analysed(report: Report, name: str) -> Mapping[str, Any]:
    """The analysis of a head, empty if there is none."""
    found: Mapping[str, Any] = ((report["analysis"] or {}).get("heads") or {}).get(name) or {}
    return found


def _quality(report: Report) -> Html:
    """A row a head: the first metric of each form."""
    served = "int8" if _has(report, "int8") else "fp32"
    retained = any(head["retention"] is not None for head in report["heads"].values())
    forms = [form for form in ("floor", "teacher", "student", served) if _has(report, form)]
    rows = []
    for name, head in report["heads"].items():
        metric, intervals = (
            next(iter(head["test"]["student"])),
            _analysed(report, name).get("intervals") or {},
        )
        cells: list[object] = [name, words(metric), of_texts(head["labelled"], head["texts"])]
        for form in forms:
            value, pair = _values(report, name).get(form, {}).get(metric), intervals.get(form)
            ends = page.tag("span", f" ±{(pair[1] - pair[0]) / 2:.3f}", class_="quiet") if pair else ""
            cells.append(page.join([number(value if head["labelled"] else None), ends]))
        cells.append(percent(head["agreement"]))
        rows.append([*cells, number(head["retention"])] if retained else cells)
    names = [FLOOR if form == "floor" else form for form in forms]
    header = ["head", "metric", "labelled texts", *names, "agreement", *(["retention"] if retained else [])]
    note = "The first metric of each head; ± is half of the 95 % interval. Agreement: texts that student and "
    note += "teacher answer alike." + (
        " Retention: the student's metric over the teacher's." if retained else ""
    )
    listed = page.table(header, rows, "quality of each head on test", words=(0, 1))
    return page.join([listed, page.paragraph(note, class_="quiet")])


def _has(report: Report, form: str) -> bool:
    return any(form in _values(report, name) for name in report["heads"])


def _values(report: Report, name: str) -> dict[str, Mapping[str, float | None]]:
    """The metrics of a head by form, those of the floor first."""
    tests = report["heads"][name]["test"]
    known = dict.fromkeys(metric for row in tests.values() for metric in row)
    floor = _analysed(report, name).get("floor")
    first = {"floor": {metric: floor.get(metric) for metric in known}} if floor else {}
    return {**first, **tests}


def _head(name: str, head: Mapping[str, Any], report: Report) -> Html:
    analysis = _analysed(report, name)
    about = f"{head['labels']} labels, {'one' if head['kind'] == 'single_label' else 'any number'} a text; "
    about += f"{of_texts(head['labelled'], head['texts'])} test texts are labelled. "
    if head["agreement"] is None:
        about += "The teacher does not know this head."
    else:
        about += f"The student agrees with the teacher on {percent(head['agreement'])} of all "
        about += f"{head['texts']:,} test texts"
        about += "." if head["retention"] is None else f"; retention {number(head['retention'])}."
    parts = [page.paragraph(about)]
    if head["labelled"]:
        where = f"the {head['labelled']:,} labelled test texts"
        parts.append(quality_table(_values(report, name), analysis.get("intervals") or {}, where))
    if (floor := analysis.get("floor")) and floor.get("train_texts"):
        note = f"The floor is a logistic regression on TF-IDF, trained on the {floor['train_texts']:,} "
        parts.append(page.paragraph(f"{note}labelled training texts.", class_="quiet"))
    if analysis:
        form = report["analysis"].get("form") or "student"
        parts.append(details_of_head(analysis, form, "test texts", REVIEW))
    return page.join(parts)


def _training(report: Report) -> Iterator[Html]:
    for side in ("teacher", "student"):
        found, figures = report["training"].get(side) or {}, []
        losses = {name: every for name, every in (found.get("losses") or {}).items() if any(every)}
        if len(losses) > 1:
            losses.pop("loss", None)
        if losses:
            title = f"Training losses of the {side}"
            note = "Mean of each epoch, summed over the heads"
            note += f"; {found['texts']:,} texts." if found.get("texts") else "."
            picture = charts.svg(charts.lines(losses, "loss", zero=True), f"{title}. {note}")
            figures.append(page.figure(picture, title, note))
        if curves := _curves(found, report):
            title = f"Validation metrics of the {side}"
            spec = charts.lines(curves, "first metric", kept=found["best_epoch"])
            note = f"Labelled texts of {report['rows']['validation']:,} validation texts; "
            note += f"epoch {found['best_epoch']} of {found['epochs']} is kept."
            note += " A line is a head." if len(curves) > len(SERIES) else ""
            figures.append(page.figure(charts.svg(spec, f"{title}. {note}"), title, note))
        if figures:
            yield page.grid(*figures)


def _curves(found: Mapping[str, Any], report: Report) -> dict[str, Sequence[float | None]]:
    """The first metric of each head by epoch; in older records what epochs are compared by."""
    every = found.get("validation_history") or {}
    curves: dict[str, Sequence[float | None]] = {}
    for name, head in report["heads"].items():
        for metric in (next(iter(head["test"]["student"])), "agreement"):
            if any(x is not None for x in every.get(f"{name}.{metric}", ())):
                curves[f"{one_line(name)}, {words(metric)}"] = every[f"{name}.{metric}"]
    if not curves and found.get("history"):
        curves = {str(found.get("metric", "mean")): found["history"]}
    return curves


ASKED = ("texts", "answered", "cached", "dropped", "failed", "requests")
TRAINING = {
    "epochs": "epochs",
    "lr": "peak learning rate",
    "head_lr": "peak learning rate of the heads",
    "batch_size": "texts per batch",
    "accumulate": "batches per step",
    "weight_decay": "weight decay",
    "dropout": "dropout",
    "network": "network",
    "seed": "seed",
}


def _settings(report: Report) -> Iterator[Html]:
    settings, both = report["settings"], (report["teacher"], report["student"])
    rows: list[tuple[str, ...]] = []
    for key, what in (("layers", "layers"), ("hidden", "width"), ("max_length", "tokens read of a text")):
        rows.append((what, *(_value(side.get(key)) for side in both)))
    rows.append(
        ("parameters", *(f"{side['parameters']:,}" if side.get("parameters") else "–" for side in both))
    )
    trained = [report["training"].get(side) or {} for side in ("teacher", "student")]
    rows.append(("training texts, augmented ones included", *(_value(side.get("texts")) for side in trained)))
    copies = settings.get("augment", {}).get("copies")
    rows.append(("augmented texts per text", "–", _value(copies)))
    rows.append(("steps", *(_value(side.get("steps")) for side in trained)))
    for key, what in TRAINING.items():
        sides = [settings.get(side, {}).get(key) for side in ("teacher", "student")]
        if report["teacher"]["adopted"]:  # was not trained here
            sides[0] = None
        if any(value is not None for value in sides):
            rows.append((what, *map(_value, sides)))
    yield page.table(("", "teacher", "student"), rows, "settings of teacher and student")
    if teachers := report.get("teachers"):
        labelled = [
            (head, page.short(one["name"]), one["kind"], one.get("terms") or "–", one["digest"][:12])
            for head, of in teachers.items()
            for one in of
        ]
        yield page.heading("Teachers")
        titles = ("head", "teacher", "kind", "terms of use", "digest")
        yield page.table(titles, labelled, "teachers of each head", words=(0, 1, 2, 3, 4))
    for asked in report.get("asked", ()):
        model = page.short(f"{asked.get('model')} at {asked.get('server')} ({asked.get('route')})")
        cells = [(model, *(_value(asked.get(count)) for count in ASKED))]
        yield page.table(("language model", *ASKED), cells, "texts that a language model was asked about")
    if losses := report["distillation"]:
        cells = [(name, found["loss"], _value(found["temperature"])) for name, found in losses.items()]
        yield page.heading("Distillation")
        share = percent(settings.get("distillation", {}).get("soft_weight"), 0)
        yield page.paragraph(f"Share of the distillation loss: {share}.", class_="quiet")
        yield page.table(("head", "loss", "temperature"), cells, "distillation of each head", words=(0, 1))
    flat = [(key, _value(value)) for key, value in _flat(settings) if value not in (None, [])]
    yield page.details(
        "All settings, as used",
        page.table(("setting", "value"), flat, "all settings", words=(0, 1), shown=len(flat)),
    )


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{prefix}{one_line(key)}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _value(value: Any) -> str:
    """A setting as text; a dash if there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return page.short(", ".join(map(str, value)) if isinstance(value, list) else value, 300)
    return f"{value:,}" if isinstance(value, int) else f"{value:.10g}"


def _speed(report: Report) -> Iterator[Html]:
    artefact = report["artefact"]
    rows = [
        (f"model file, {form}", f"{artefact[f'{form}_bytes'] / 1e6:.2f} MB")
        for form in ("fp32", "int8")
        if f"{form}_bytes" in artefact
    ]
    if latency := report.get("latency_ms"):
        what = f"latency of a text of {latency['tokens']} tokens, threads: {latency['threads']}"
        rows += [
            (f"{what}, {name}", f"{latency[key]:.2f} ms") for name, key in (("median", "p50"), ("p99", "p99"))
        ]
        threads = report["throughput_threads"]
        rows.append((f"throughput, threads: {threads}", f"{report['throughput']:,.0f} texts per second"))
    yield page.table(("", ""), rows, "size and speed")
    parity = [
        (
            name,
            "not finite" if found["max_difference"] is None else f"{found['max_difference']:.1e}",
            found["other_labels"],
        )
        for name, found in report["parity"]["heads"].items()
    ]
    yield page.heading("Parity of torch and ONNX fp32")
    yield page.paragraph(f"On all {report['parity']['texts']:,} test texts.", class_="quiet")
    yield page.table(
        ("head", "largest difference of a logit", "texts with another label"),
        parity,
        "parity of torch and ONNX",
    )


def _data(report: Report) -> Iterator[Html]:
    rows = report["rows"]
    cells = [
        (name, *(of_texts(counts[split], rows[split]) for split in SPLITS))
        for name, counts in report["labelled"].items()
    ]
    yield page.table(("labelled texts of head", *SPLITS), cells, "labelled texts")
    if sources := report.get("sources"):
        cells = [
            (name, head, *(f"{counts[split]:,}" for split in SPLITS))
            for name, head, counts in source_rows(sources)
        ]
        yield page.table(
            ("source", "labelled texts of head", *SPLITS), cells, "texts of each source", words=(0, 1)
        )


def source_rows(sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, int]]]:
    """The name of a source, a head that it labels, and its labelled texts by split."""
    for source in sources:
        for head, counts in source["labelled"].items():
            if any(counts.values()):
                yield source["name"], head, counts


def _stages(report: Report) -> Html:
    stages = report["stages"]
    longest = max(stage["seconds"] for stage in stages.values()) or 1.0
    rows = [
        (
            name,
            _duration(stage["seconds"]),
            page.bar(stage["seconds"] / longest),
            f"{stage['peak_rss_bytes'] / 1e9:.2f} GB",
            stage["device"],
        )
        for name, stage in stages.items()
    ]
    return page.table(("stage", "time", "", "peak memory so far", "device"), rows, "stages of the run")
