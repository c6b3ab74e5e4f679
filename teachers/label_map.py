"""Matches the labels of a teacher with those of a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

SHOWN = 40  # labels of a list in a message


class LabelMapError(Exception):
    """The labels of a teacher do not match those of a head: both lists, and what to do."""

    exit_code = 2


def match_labels(
    theirs: Sequence[str],
    ours: Sequence[str],
    given: Mapping[str, str | None] | None,
    key: Callable[[str], str],
) -> list[int]:
    """For each label of a head, its place among a teacher's labels.

    Labels match if their keys are equal, or equal but for upper and lower case if this is unambiguous. A map
    takes precedence over names.

    Args:
        theirs: The teacher's labels, in the order of its logits.
        ours: The labels of the head, in order.
        given: The label of the head for labels of the teacher; None leaves a label out.
        key: What all spellings of a label have in common.

    Raises:
        LabelMapError: A label of either has no counterpart, or two have the same.
    """
    find_theirs, find_ours = _finder(theirs, key), _finder(ours, key)
    if unknown := [label for label in given or () if find_theirs(label) is None]:
        raise LabelMapError(
            f"labels: no label {unknown[0]!r}{_near(unknown[0], theirs)}, those of the teacher are "
            f"{_listed(theirs)}"
        )
    explicit = {find_theirs(label): name for label, name in (given or {}).items()}
    if len(explicit) < len(given or {}):
        raise LabelMapError("labels: names a label of the teacher twice (name each once)")
    places: list[int | None] = []
    for number, label in enumerate(theirs):
        name = explicit.get(number, label)
        place = None if name is None else find_ours(name)
        if place is None and name is not None and number in explicit:
            raise LabelMapError(
                f"labels: {label!r} is mapped to {name!r}, which is no label of the "
                f"head{_near(name, ours)}, those of the head are {_listed(ours)}"
            )
        places.append(place)
    unmatched = [label for n, label in enumerate(theirs) if places[n] is None and n not in explicit]
    absent = [label for number, label in enumerate(ours) if number not in places]
    lists = f"the teacher's labels are {_listed(theirs)}, the head's are {_listed(ours)}"
    if unmatched or absent:
        parts = [
            f"{len(some)} {whose} no counterpart, the first is {some[0]!r}"
            for some, whose in ((unmatched, "of its labels have"), (absent, "labels of the head have"))
            if some
        ]
        raise LabelMapError(
            f"{'; '.join(parts)}; {lists} (map them: `labels: {{{_example(unmatched, absent, theirs)}}}`)"
        )
    if twice := [label for number, label in enumerate(ours) if places.count(number) > 1]:
        both = [label for label, place in zip(theirs, places, strict=True) if place == ours.index(twice[0])]
        raise LabelMapError(
            f"{' and '.join(map(repr, both[:2]))} are both {twice[0]!r}; {lists} (map one to null in "
            "`labels`)"
        )
    return [places.index(number) for number in range(len(ours))]


def mapped_labels(theirs: Sequence[str], given: Mapping[str, str | None] | None) -> list[str]:
    """A teacher's labels as the labels of a head that lists none: by the map, else as they are."""
    names = [(given or {}).get(label, label) for label in theirs]
    return [name for name in names if name is not None]


def _finder(labels: Sequence[str], key: Callable[[str], str]) -> Callable[[str], int | None]:
    """The place of a label among `labels`: of its key, or of its folded key if one label alone has it."""
    exact: dict[str, list[int]] = {}
    folded: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        exact.setdefault(key(label), []).append(number)
        folded.setdefault(key(label).casefold(), []).append(number)

    def find(label: str) -> int | None:
        found = exact.get(key(label)) or folded.get(key(label).casefold(), [])
        return found[0] if len(found) == 1 else None

    return find


def _listed(labels: Sequence[str]) -> str:
    more = [f"{len(labels) - SHOWN:,} more"] if len(labels) > SHOWN else []
    return f"[{', '.join([*labels[:SHOWN], *more])}]"


def _near(word: str, known: Sequence[str]) -> str:
    match = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _example(unmatched: Sequence[str], absent: Sequence[str], theirs: Sequence[str]) -> str:
    first = unmatched[0] if unmatched else theirs[0]
    return f"{first}: {absent[0] if absent else 'null'}, ..."
