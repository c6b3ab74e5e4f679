import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.recipe.data_section import RecipeError
from distill.recipe.load import dump_yaml, load_recipe, load_yaml

BASE = """\
name: toy
data: {train: train.csv}
heads:
  intent: {column: intent}
  flags: {column: flags, kind: multi_label}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(folder, text), **more)
    return str(caught.value)


def test_words_and_numbers(tmp_path: Path) -> None:
    text = BASE + (
        "precision: no\n"
        "teacher: {lr: 1e-4, weight_decay: .5, epochs: 7}\n"
        "student: {lr: 2E-3, dropout: 0, weight_decay: 1e1}\n"
    )
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.precision == "no"
    assert (recipe.teacher.lr, recipe.teacher.weight_decay, recipe.teacher.epochs) == (1e-4, 0.5, 7)
    assert (recipe.student.lr, recipe.student.dropout, recipe.student.weight_decay) == (2e-3, 0, 10)


def test_words_that_are_booleans_in_yaml_1_1(tmp_path: Path) -> None:
    text = BASE + "  answer: {column: a, labels: [yes, no, on, off, y, n]}\n"
    assert load_recipe(written(tmp_path, text)).heads["answer"].labels == ("yes", "no", "on", "off", "y", "n")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: a\nname: b\n", 2, "name"),
        (BASE + "teacher: {lr: 1e-4, lr: 1e-5}\n", 6, "lr"),
        (BASE + "heads: {}\n", 6, "heads"),
    ],
)
def test_a_duplicate_key_is_an_error(tmp_path: Path, text: str, line: int, key: str) -> None:
    assert (
        refused(tmp_path, text) == f'{tmp_path}/recipe.yaml:{line}: found duplicate key "{key}" (remove one)'
    )


def test_merge_keys(tmp_path: Path) -> None:
    text = BASE.replace(
        "heads:", "heads:\n  first: &first {column: a, weight: 2.0}\n  second: {<<: *first, column: b}"
    )
    heads = load_recipe(written(tmp_path, text)).heads
    assert (heads["second"].column, heads["second"].weight) == ("b", 2.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", ": is not YAML: expected the node content"),
        ("name: a\n b: c\n", ":2: is not YAML: mapping values are not allowed here"),
        ("a: !!python/object:os.system x", ": is not YAML: could not determine a constructor for the tag"),
        (
            "a: 2020-13-45",
            ": is not YAML: '2020-13-45' is not a valid timestamp (quote it if it is a string)",
        ),
        ("b: 1\na: -_\n", ":2: is not YAML: '-_' is not a valid int"),
        ("b: 1\na: 0o_\n", ":2: is not YAML: '0o_' is not a valid int"),
        ("b: 1\na: !!float x\n", ":2: is not YAML: 'x' is not a valid float"),
        (f"b: 1\na: {'9' * 5000}\n", ":2: is not YAML: '999"),
        ("a: !!bool x", ": is not YAML: 'x' is not a valid bool"),
        ("a: \x01", ": is not YAML: unacceptable character #x0001"),
        ("a: *b", ": is not YAML: found undefined alias 'b'"),
        ("- name", ": is a list, expected a mapping of settings"),
        ("", ": is empty, expected a mapping of settings"),
        ("# nothing\n", ": is empty, expected a mapping of settings"),
        ("a: 1\n---\nb: 2\n", ":2: is not YAML: but found another document"),
    ],
)
def test_text_that_is_not_a_recipe(tmp_path: Path, text: str, expected: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'recipe.yaml'}{expected}") and "\n" not in message


def bomb(line: str) -> str:
    return "a0: &a0 {k: 1}\n" + "".join(line.format(i, f"*a{i - 1}") for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 2000, "is nested too deeply"),
        ("a: " + "{a: " * 5000, "is nested too deeply"),
        (bomb("a{0}: &a{0} [{1}, {1}]\n"), "has over 20000 values"),
        (bomb("a{0}: &a{0} {{<<: [{1}, {1}]}}\n"), "has over 20000 values"),
        ("a: &a [*a]", "has over 20000 values"),
        ("# " + "x" * 250_000, "has over 250000 bytes"),
        ("name: a\na:\n" + "- " * 3000, "recipe.yaml:3: is nested too deeply"),
        ("".join(f"k{i}: 1\n" for i in range(100_000)), "has over 250000 bytes"),
        ("".join(f"{i}:\n" for i in range(30_000)), "has over 20000 values"),
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 4000)), "has over 20000"),
    ],
    ids=[
        *("sequences", "mappings", "aliases", "merged aliases", "cycle", "size", "blocks", "bytes", "keys"),
        "chain",
    ],
)
def test_documents_that_are_too_deep_or_too_large(tmp_path: Path, text: str, expected: str) -> None:
    message = refused(tmp_path, text)
    assert expected in message and len(message) < 300 and "\n" not in message


def test_a_list_of_many_errors_ends(tmp_path: Path) -> None:
    lines = refused(tmp_path, BASE + "".join(f"k{i}: 1\n" for i in range(5000))).splitlines()
    assert len(lines) == 21 and lines[-1].endswith("recipe.yaml: 4,980 more errors")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: späte".encode("latin-1"))
    with pytest.raises(RecipeError, match="is not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", "/dev/zero"):
        with pytest.raises(RecipeError, match="is not a regular file"):
            load_recipe(path)


def test_long_values_are_shortened_in_errors(tmp_path: Path) -> None:
    message = refused(tmp_path, BASE + f"seed: [{', '.join(map(str, range(2000)))}]\n")
    assert message.endswith("got [0, 1, 2, 3, 4, 5, ...]")
    for long in (f"{'k' * 5000}: 1", f"data: {{train: a.csv, encoding: {'x' * 5000}}}"):
        text = BASE.replace("data: {train: train.csv}", long)
        assert all(len(line) <= 501 for line in refused(tmp_path, text).splitlines())


def test_errors_name_the_file(tmp_path: Path) -> None:
    assert refused(tmp_path, BASE + "sed: 1\n") == (
        f"{tmp_path / 'recipe.yaml'}: sed: unknown key (did you mean 'seed'?)"
    )


def test_data_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, BASE)
    assert load_recipe(path).data.root == str(tmp_path.resolve())
    assert load_recipe(path, overrides=["data.root=sub"]).data.root == str(tmp_path.resolve() / "sub")
    assert load_recipe(path, overrides=["data.root=/abs"]).data.root == "/abs"
    assert load_recipe(path, data_root="/other").data.root == "/other"
    for root in ('"a\\0b"', '"\\uD800"'):
        fault = refused(tmp_path, BASE, overrides=[f"data.root={root}"])
        assert "recipe.yaml: data.root: must be a path, got " in fault
    fault = refused(tmp_path, BASE, overrides=['heads.flags.columns=["\\uD800", b]'])
    assert fault.endswith("has characters that UTF-8 cannot encode (remove them)")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_what_is_written_reads_back(value: Any) -> None:
    assert load_yaml(dump_yaml(value)) == value


def test_keys_are_written_in_their_order() -> None:
    value = {"name": "toy", "data": {"train": "a b.csv", "text": None}, "answers": ["no", "1e-4", "ü", True]}
    assert dump_yaml(value) == (
        "name: toy\ndata:\n  train: a b.csv\n  text: null\nanswers:\n- no\n- '1e-4'\n- \"\\xFC\"\n- true\n"
    )


# overrides


def test_overrides(tmp_path: Path) -> None:
    overrides = [
        "student.epochs=20",
        "teacher.lr=1e-4",
        "heads.intent.labels=[a, b]",
        "name=x=y".replace("=y", "-y"),
        "student.epochs=21",
    ]
    recipe = load_recipe(written(tmp_path, BASE), overrides=overrides)
    assert (recipe.student.epochs, recipe.teacher.lr, recipe.name) == (21, 1e-4, "x-y")
    assert recipe.heads["intent"].labels == ("a", "b")


def test_an_override_of_an_empty_section(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, BASE + "student:\n"), overrides=["student.epochs=20"])
    assert recipe.student.epochs == 20


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.epochs", "--set 'student.epochs': expected KEY=VALUE"),
        ("=3", "--set '=3': expected KEY=VALUE"),
        ("name.first=3", "--set 'name.first=3': 'name' is a value, expected a section"),
        ("seed=[", "--set 'seed=[': is not YAML: "),
        ("student.epohs=3", "student.epohs: unknown key (did you mean 'epochs'?)"),
        ("student.epochs=many", "student.epochs: "),
        (
            "heads.itent.weight=2",
            "heads.itent: give either `column` or `columns`, or `labels` alone (did you mean 'intent'?)",
        ),
    ],
)
def test_invalid_overrides(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refused(tmp_path, BASE, overrides=[override])
