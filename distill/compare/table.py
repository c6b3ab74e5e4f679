"""The table of a comparison, for a terminal and for documents, and its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.reports.text import markdown, one_line

Table = Mapping[str, Any]
Row = Mapping[str, Any]
LONGEST = 32  # characters of a candidate's name on a terminal
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column: what it sorts by (None where nothing was measured), what it shows, and what it means."""

    title: str
    value: Callable[[Row], float | str | None]
    text: Callable[[Row], str]
    meaning: str = ""
    words: bool = False


def pareto(points: Iterable[tuple[float | None, float | None]]) -> list[int]:
    """The points that no other point beats: a cost (lower is better) and a quality (higher is better) each.

    Points without cost or quality are not on the front.

    Returns:
        Their indices, cheapest first.
    """
    given = [(c, q, i) for i, (c, q) in enumerate(points) if c is not None and q is not None]
    front: list[tuple[float, float, int]] = []
    for cost, quality, index in sorted(given, key=lambda point: (point[0], -point[1])):
        if not front or quality > front[-1][1] or (cost, quality) == front[-1][:2]:
            front.append((cost, quality, index))
    return [index for _, _, index in front]


def front(table: Table) -> set[int]:
    """The rows on the Pareto front of quality (mean over the heads) and median CPU latency."""
    return set(
        pareto((number(at("latency_ms", "p50")(row)), mean_quality(row, table)) for row in table["rows"])
    )


def mean_quality(row: Row, table: Table) -> float | None:
    """The mean of what the row's candidate reaches over the heads that have labelled test texts.

    None without a value of each of them.
    """
    values = [quality(row, head) for head in table["head_names"] if table["texts"]["test"].get(head)]
    return sum(filter(None, values)) / len(values) if values and None not in values else None


def quality(row: Row, head: str) -> float | None:
    """The quality of a head, if it was measured."""
    return number(at("quality", head, "value")(row))


def number(value: object) -> float | None:
    """The value if it is a finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def ordered(table: Table) -> list[Row]:
    """The rows that hold a value, best quality first, then lowest latency; those without quality last.

    A candidate of which one seed failed has values.
    """

    def key(row: Row) -> tuple[float, float]:
        value, latency = mean_quality(row, table), number(at("latency_ms", "p50")(row))
        return math.inf if value is None else -value, math.inf if latency is None else latency

    figures = [column.value for column in columns(table) if not column.words][:-1]
    return sorted((row for row in table["rows"] if any(value(row) is not None for value in figures)), key=key)


def columns(table: Table, *, wide: bool = True) -> list[Column]:
    """The columns of a comparison.

    Args:
        table: The comparison.
        wide: Whether to add what a terminal has no room for.
    """
    best = [table["rows"][index] for index in front(table)]
    p50, p99 = at("latency_ms", "p50"), at("latency_ms", "p99")
    train, infer = at("train_rss_bytes"), at("inference_rss_bytes")
    found = [
        Column("candidate", *_words("candidate"), words=True),
        Column("how", *_words("how"), words=True),
        *(_quality_column(head, table) for head in table["head_names"]),
        *([numbers("fits", at("fits"), _fits, f"the budget, {budget(table)}")] if budget(table) else []),
        numbers("p50 / p99 ms", p50, _pair(p50, p99), "latency of one text on the CPU"),
        numbers("texts/s", at("throughput"), _throughput("throughput", "batch_size"),
                 "on the CPU, at the best batch size"),
        numbers("fit s", at("fit_seconds"), _fit,
                 "training of a seed, of distilled ones with teacher and soft labels; ≈ estimated"),
        numbers("params M", at("parameters"), _millions(at("parameters"))),
        numbers("int8 MB", at("bytes", "int8"), _millions(at("bytes", "int8"))),
        numbers("RSS MB train / infer", infer, _pair(train, infer, 1e6),
                 "peak memory of the process; sorted by inference"),
    ]  # fmt: skip
    if wide:
        extra = [
            numbers("fp32 MB", at("bytes", "fp32"), _millions(at("bytes", "fp32"))),
            numbers("fp32 p50 ms", at("latency_ms", "fp32_p50"), plain(at("latency_ms", "fp32_p50"))),
            numbers("GPU texts/s", at("gpu_throughput"), _throughput("gpu_throughput", "gpu_batch_size")),
            numbers("GPU MB train", at("train_gpu_bytes"), _millions(at("train_gpu_bytes"))),
        ]
        found += [column for column in extra if any(column.text(row) != NOTHING for row in table["rows"])]
    mark = Column(
        "front",
        lambda row: float(any(row is other for other in best)),
        lambda row: "*" if any(row is other for other in best) else "",
        "no other candidate is as good (mean of the heads) and faster (p50)",
    )
    return [*found, mark]


def budget(table: Table) -> str:
    """The budget in words, or an empty text."""
    units = [(table["budget"].get("ms"), "ms"), (table["budget"].get("mb"), "MB")]
    limits = [f"{limit:g} {unit}" for limit, unit in units if limit is not None]
    return f"at most {' and '.join(limits)}" if limits else ""


def facts(table: Table) -> list[str]:
    """What was measured, on what: a sentence each."""
    machine, tests = table["machine"], table["texts"]["test"]
    counts = ", ".join(f"{one_line(head)} {count:,}" for head, count in tests.items())
    seeds = sorted({seed for row in table["rows"] for seed in row["seeds"]})
    gpu = f", {one_line(machine['gpu'])}" if machine.get("gpu") else ""
    threads = machine["threads"]
    return [
        f"{table['texts']['train']:,} training texts. Labelled test texts, not read in training: {counts}.",
        f"{one_line(machine['cpu'])}, {threads} thread{'' if threads == 1 else 's'}{gpu}; "
        f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds)) or 'none'}.",
    ]


def failures(table: Table) -> list[tuple[str, str]]:
    """The candidates that failed, each with its reason."""
    return [
        (f"{one_line(row['candidate'])}, {one_line(row['how'])}", one_line(row["failed"]))
        for row in table["rows"]
        if row["failed"]
    ]


def unmeasured(table: Table) -> list[str]:
    """The candidates whose weights cannot be reached: measured for size and speed alone."""
    return [one_line(row["candidate"]) for row in table["rows"] if not row["weights"] and not row["failed"]]


def table_text(table: Table) -> str:
    """The comparison for a terminal: aligned columns, then what they mean, then what failed."""
    chosen = columns(table, wide=False)
    rows = [[cut(column.text(row)) for column in chosen] for row in ordered(table)]
    lines = aligned([[column.title for column in chosen], *rows], [column.words for column in chosen])
    return "\n".join([*lines, "", *_notes(table, chosen)])


def table_markdown(table: Table) -> str:
    """The comparison as Markdown, with every column."""
    chosen = columns(table)
    rows = [[markdown(column.text(row)) for column in chosen] for row in ordered(table)]
    return "\n\n".join(
        [
            f"# {markdown(table['name'])}",
            markdown_table(chosen, rows),
            *(f"{markdown(note)}" for note in _notes(table, chosen)),
        ]
    ) + "\n"  # fmt: skip


def at(*keys: str) -> Callable[[Row], Any]:
    """A function that reads a value of a row: None where it or what holds it is missing."""

    def value(row: Row) -> Any:
        found: Any = row
        for key in keys:
            found = (found or {}).get(key)
        return found

    return value


def _words(key: str) -> tuple[Callable[[Row], str], Callable[[Row], str]]:
    return (lambda row: one_line(row[key]), lambda row: one_line(row[key]))


def _quality_column(head: str, table: Table) -> Column:
    count = table["texts"]["test"].get(head)
    meaning = "± half of the 95 % interval" + (f" over {count:,} test texts" if count else "")
    if any(len(row["seeds"]) > 1 for row in table["rows"]):
        meaning += "; [lowest and highest seed]"
    title = f"{one_line(head)} {one_line(table['metrics'][head])}"
    return numbers(title, lambda row: quality(row, head), lambda row: quality_text(row, head), meaning)


def quality_text(row: Row, head: str) -> str:
    """The quality of a head with half of its interval and, of several seeds, the lowest and the highest."""
    if (value := quality(row, head)) is None:
        return NOTHING if row["weights"] or row["failed"] else "no weights"
    found = row["quality"][head]
    low, high = number(found.get("low")), number(found.get("high"))
    text = f"{value:.3f}" + ("" if low is None or high is None else f" ±{(high - low) / 2:.3f}")
    seeds = [seed for seed in map(number, found.get("seeds") or ()) if seed is not None]
    return text + (f" [{min(seeds):.3f} {max(seeds):.3f}]" if len(seeds) > 1 else "")


def numbers(title: str, value: Callable[[Row], Any], text: Callable[[Row], str], meaning: str = "") -> Column:
    """A column of numbers, given what a row's value is and how it is shown."""
    return Column(title, lambda row: number(value(row)), text, meaning)


def plain(value: Callable[[Row], Any], scale: float = 1.0) -> Callable[[Row], str]:
    """A function that shows a value of a row, divided by a scale."""
    return lambda row: _figure(value(row), scale)


def _millions(value: Callable[[Row], Any]) -> Callable[[Row], str]:
    return plain(value, 1e6)


def _pair(
    first: Callable[[Row], Any], second: Callable[[Row], Any], scale: float = 1.0
) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        pair = [_figure(first(row), scale), _figure(second(row), scale)]
        return NOTHING if pair == [NOTHING, NOTHING] else " / ".join(pair)

    return text


def _throughput(value: str, size: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        found, batch = _figure(row.get(value)), row.get(size)
        return found if found == NOTHING or batch is None else f"{found} @{batch}"

    return text


def _fit(row: Row) -> str:
    text = _figure(row.get("fit_seconds"))
    return f"≈{text}" if row.get("fit_seconds_estimated") and text != NOTHING else text


def _fits(row: Row) -> str:
    return {True: "yes", False: "no"}.get(row["fits"], NOTHING)


def _figure(value: object, scale: float = 1.0) -> str:
    """A measured value with at least two digits."""
    if (found := number(value)) is None:
        return NOTHING
    found /= scale
    return f"{found:,.{0 if found >= 99.5 else 1 if found >= 9.95 else 2}f}"


def _notes(table: Table, chosen: Sequence[Column]) -> list[str]:
    missing = unmeasured(table)
    return [
        *facts(table),
        *meanings(chosen),
        *(
            [f"Without quality, as their weights could not be loaded: {', '.join(missing)}."]
            if missing
            else []
        ),
        *(f"failed: {who}: {reason}" for who, reason in failures(table)),
    ]


def meanings(chosen: Sequence[Column]) -> list[str]:
    """What the columns mean, a line each."""
    return [f"{column.title}: {column.meaning}." for column in chosen if column.meaning]


def cut(text: str) -> str:
    """The text of a cell, short enough for a terminal."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def aligned(rows: Sequence[Sequence[str]], words: Sequence[bool]) -> list[str]:
    """The lines of a table for a terminal; columns of words are aligned left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in rows
    ]


def markdown_table(chosen: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, of cells that are Markdown already."""
    top = [[markdown(column.title) for column in chosen], ["---" if c.words else "---:" for c in chosen]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*top, *rows])
