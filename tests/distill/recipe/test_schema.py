import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill.recipe.data_section import RecipeError
from distill.recipe.load import load_recipe, parse_recipe
from distill.recipe.near import near
from distill.recipe.schema import Recipe
from distill.storage import json_digest

BASE = """\
name: toy
data: {train: train.csv}
heads:
  intent: {column: intent}
  flags: {column: flags, kind: multi_label}
"""


def made(**changes: Any) -> Recipe:
    """The base recipe with dotted keys set; `__` stands for the dot."""
    raw: dict[str, Any] = {
        "name": "toy",
        "data": {"train": "train.csv"},
        "heads": {"intent": {"column": "intent"}, "flags": {"column": "flags", "kind": "multi_label"}},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = raw
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return parse_recipe(raw)


def faults(**changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        made(**changes)
    return str(caught.value).splitlines()


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# defaults


def test_defaults_are_the_published_configuration() -> None:
    recipe = made()
    teacher, student = recipe.teacher, recipe.student
    assert teacher.encoder == "distilbert/distilbert-base-uncased"
    assert teacher.batch_size == 32
    assert (teacher.dropout, teacher.weight_decay, teacher.warmup) == (0.1, 0.01, 0.1)
    # size and start unsaid: BERT-tiny, google/bert_uncased_L-2_H-128_A-2 (the rooms know the shapes)
    assert (student.size, student.encoder, student.start) == (None, None, None)
    assert student.batch_size == 128
    # found from the texts, see defaults
    assert {teacher.epochs, teacher.lr, student.epochs, student.lr, recipe.augment.copies} == {None}
    assert {teacher.max_length, recipe.export.max_length} == {None}
    assert recipe.distillation.model_dump() == {
        "loss": None,  # as defaults finds for each head, likewise its temperature
        "temperature": None,
        "soft_weight": 0.9,
        "fill": None,
    }
    assert recipe.match.hidden == 0 and recipe.match.layers is None
    assert recipe.export.quantize == "int8"
    assert recipe.gates.model_dump() == {
        "parity": 1e-3,
        "int8_drop": 0.005,
        "int8_changed": 0.03,
        "int8_log_loss": 0.02,
        "kept_changed": None,
        "kept_drop": None,
        "allow": (),
    }
    assert recipe.data.validation == recipe.data.test and recipe.data.test.fraction == 0.1  # type: ignore[union-attr]
    assert (recipe.seed, recipe.precision, recipe.device) == (0, "auto", "auto")
    assert recipe.heads["intent"].kind == "single_label" and recipe.heads["intent"].weight == 1


def test_the_default_student_starts_from_bert_tiny() -> None:
    from students.shapes import SIZES

    assert SIZES["tiny"].miniature == "google/bert_uncased_L-2_H-128_A-2"


def test_saying_the_defaults_changes_nothing() -> None:
    assert made(teacher__batch_size=32, distillation__soft_weight=0.9, seed=0).digest() == made().digest()


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        made().teacher.epochs = 4


# faults


def test_all_faults_at_once_one_a_line() -> None:
    assert faults(
        teacher__epohs=3,
        student__temperature=2,
        distillation__temperature=-2.0,
        distillation__soft_weight=1.5,
        export__quantize="int4",
        heads__intent__knd="multi_label",
        sed=1,
        seed=-1,
    ) == [
        "recipe: seed: must be >= 0, got -1",
        "recipe: teacher.epohs: unknown key (did you mean 'epochs'?)",
        "recipe: student.temperature: unknown key (did you mean 'distillation.temperature'?)",
        "recipe: heads.intent.knd: unknown key (did you mean 'kind'?)",
        "recipe: distillation.temperature: must be > 0.0, got -2.0",
        "recipe: distillation.soft_weight: must be <= 1.0, got 1.5",
        "recipe: export.quantize: must be one of 'int8' or 'none', got 'int4'",
        "recipe: sed: unknown key (did you mean 'seed'?)",
    ]


def test_what_is_required() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"data": {}}, where="a.yaml")
    assert str(caught.value).splitlines() == [
        "a.yaml: name: is required",
        "a.yaml: data.train: is required (or give data.unlabeled, whose texts a teacher labels)",
        "a.yaml: heads: is required",
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 2**32, "seed: must be < 4294967296"),
        ("name", "two words", "name: "),
        ("name", "../up", "name: "),
        ("heads", {}, "heads: "),
        ("precision", "fp8", "precision: must be one of 'auto', 'bf16', 'fp16' or 'no'"),
        ("device", "cuda", "device: must be one of 'auto' or 'cpu'"),
        ("data__max_bad_rows", 1.1, "data.max_bad_rows: must be <= 1"),
        ("data__unlabeled", "inbox.txt", "data.unlabeled: "),
        ("heads__intent__weight", 0, "heads.intent.weight: must be > 0"),
        ("heads__intent__kind", "multi", "heads.intent.kind: must be one of"),
        ("heads__intent__labels", [], "heads.intent.labels: "),
        ("heads__flags__class_weight", "balance", "heads.flags.class_weight: must be balanced, or `{label"),
        ("heads__flags__class_weight", {}, "heads.flags.class_weight: must be balanced"),
        ("heads__flags__class_weight", {"a": 0}, "heads.flags.class_weight: must be balanced"),
        ("heads__flags__class_weight", {"a": True}, "heads.flags.class_weight: must be balanced"),
        ("heads__flags__class_weight", {"a": float("nan")}, "heads.flags.class_weight: must be balanced"),
        ("heads__flags__thresholds", "f2", "heads.flags.thresholds: must be f1 or `{precision: 0.9}`"),
        ("heads__flags__thresholds", 0.9, "heads.flags.thresholds: must be f1 or `{precision: 0.9}`"),
        *(
            (
                "heads__flags__thresholds__precision",
                value,
                "heads.flags.thresholds.precision: must be a number",
            )
            for value in (0, 1, 90, "0.9", True, None, {}, {"a": 1}, [0.9])
        ),
        ("teacher__lr", "fast", "teacher.lr: "),
        ("teacher__lr", float("nan"), "teacher.lr: "),
        ("teacher__lr", float("inf"), "teacher.lr: "),
        ("teacher__dropout", 1, "teacher.dropout: must be < 1"),
        ("teacher__warmup", 1.0, "teacher.warmup: must be < 1"),
        ("teacher__epochs", 0, "teacher.epochs: must be > 0"),
        ("teacher__epochs", 2.5, "teacher.epochs: "),
        ("checkpoint_every", 0, "checkpoint_every: must be > 0"),
        ("teacher__pooling", "max", "teacher.pooling: must be one of 'cls' or 'mean'"),
        ("teacher__sha256", "abc", "teacher.sha256: "),
        ("teacher__max_length", 2, "teacher.max_length: must be > 2"),
        ("export__max_length", 8193, "export.max_length: must be <= 8192"),
        ("teacher__train", [], "teacher.train: "),
        ("student__size", "huge", "student.size: must be one of"),
        ("distillation__soft_weight", -0.1, "distillation.soft_weight: must be >= 0"),
        ("distillation__temperature", 0, "distillation.temperature: must be > 0"),
        ("match__hidden", -1, "match.hidden: must be >= 0"),
        ("match__layers", 3, "match.layers: "),
        ("augment__mask", 2, "augment.mask: must be <= 1"),
        ("augment__copies", -1, "augment.copies: must be >= 0"),
        ("gates__parity", 0, "gates.parity: must be > 0"),
    ],
)
def test_every_setting_has_its_range(key: str, value: Any, expected: str) -> None:
    (line,) = faults(**{key: value})
    assert line.startswith(f"recipe: {expected}") and line.endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"heads__intent": {}}, "heads.intent: give either `column` or `columns`"),
        ({"heads__intent__columns": ["a"]}, "heads.intent: give either `column` or `columns`"),
        (
            {"heads__h": {"columns": ["a", "b"], "kind": "single_label"}},
            "heads.h: `columns` of 0/1 make a multi_label head, not a single_label one",
        ),
        ({"heads__flags__separator": ""}, "heads.flags: `separator` must not be empty"),
        (
            {"heads__intent__thresholds": {"precision": 0.9}},
            "heads.intent: `thresholds` are those of a multi_",
        ),
        (
            {"heads__flags": {"columns": ["ab", "c"], "class_weight": {"abc": 2}}},
            "heads.flags: class_weight: no label 'abc' (did you mean 'ab'?)",
        ),
        (
            {"heads__flags": {"columns": ["ab", "c"], "thresholds": {"precision": {"abc": 0.2}}}},
            "heads.flags: thresholds.precision: no label 'abc' (did you mean 'ab'?)",
        ),
        (
            {"student__layers": 2},
            "student: give all of `layers`, `hidden`, `attention_heads`, or none of them",
        ),
        (
            {"student__size": "mini", "student__encoder": "x"},
            "student: `encoder` and `size` both give the shape; keep one",
        ),
        (
            {
                "student__encoder": "x",
                "student__layers": 1,
                "student__hidden": 8,
                "student__attention_heads": 2,
            },
            "student: `encoder` and `hidden` both give the shape; keep one",
        ),
        (
            {"student__layers": 1, "student__hidden": 9, "student__attention_heads": 2},
            "student: `hidden` must be a multiple of `attention_heads`",
        ),
        ({"teacher__train": ["encoder", "intnt"]}, "teacher.train: no head 'intnt' (did you mean 'intent'?)"),
        ({"student__train": ["mood"]}, "student.train: no head 'mood'"),
        (
            {"student__metric": "intent.acuracy"},
            "student.metric: 'intent.acuracy' is no HEAD.METRIC (did you mean 'intent.accuracy'?)",
        ),
        ({"teacher__metric": "zzz"}, "teacher.metric: 'zzz' is no HEAD.METRIC"),
        ({"match__layers": [3, 0]}, "match.layers.1: must be > 0, got 0"),
        ({"match__hiden": 1}, "match.hiden: unknown key (did you mean 'hidden'?)"),
        (
            {"match__hidden": 1, "student__train": ["heads"]},
            "match: the student's encoder is frozen (add encoder to student.train)",
        ),
        # a metric of the other kind
        ({"teacher__metric": "flags.accuracy"}, "teacher.metric: 'flags.accuracy' is no HEAD.METRIC"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], expected: str) -> None:
    (line,) = faults(**changes)
    assert line.startswith(f"recipe: {expected}")


@pytest.mark.parametrize("name", ["1st", "a-b", "a b", "", "späte", "a.b", "_a", "a\n", "encoder", "heads"])
def test_names_that_no_head_may_have(name: str) -> None:
    assert faults(heads={name: {"column": "c"}})[0].startswith(f"recipe: heads: head name {name!r}")


@pytest.mark.parametrize("name", ["a", "intent_2", "type", "str", "Hub"])
def test_names_that_a_head_may_have(name: str) -> None:
    assert list(made(heads={name: {"column": "c"}}).heads) == [name]
    assert faults(heads={name: {"column": "c", "knd": 1}})[0].startswith(f"recipe: heads.{name}.knd: unknown")


ALONE = {
    "data": {"unlabeled": ["texts.txt"]},
    "heads": {"intent": {"labels": ["a", "b"]}, "flags": {"columns": ["x", "y"]}},
    "teacher": {"networks": ["runs/old/stages/fit_teacher"]},
}


def test_texts_without_labels_need_networks_and_lists_of_labels() -> None:
    recipe = made(**ALONE)
    assert recipe.data.train is None and recipe.heads["intent"].column is None
    for changes, expected in (
        (
            {"teacher": {}, "heads": {"intent": {"column": "i", "labels": ["a", "b"]}}},
            "data.train: is required, as a",
        ),
        ({"teacher": {}}, "heads.intent: `labels` alone are for a teacher that knows them: networks, merge"),
        (
            {"data": {}},
            "data.train: is required (or give data.unlabeled, whose texts a teacher labels)",
        ),
        ({"data": {"unlabeled": []}}, "data.train: is required (or give data.unlabeled"),
        ({"heads__intent": {"column": "intent"}}, "heads.intent.labels: is required without data.train"),
        ({"heads__intent__min_texts": 2}, "heads.intent.min_texts: counts labels of data.train"),
        ({"distillation__soft_weight": 0}, "distillation.soft_weight: 0 learns from labels alone"),
    ):
        (line,) = faults(**deepcopy(ALONE) | changes)
        assert line.startswith(f"recipe: {expected}") and "\n" not in line


def test_what_may_be_trained_and_picked() -> None:
    recipe = made(
        teacher__train=["encoder", "flags"], teacher__metric="flags.roc_auc", student__metric="intent.ece"
    )
    assert recipe.teacher.train == ("encoder", "flags")


def test_columns_make_a_multi_label_head() -> None:
    assert made(heads__toxic={"columns": ["toxic", "insult"]}).heads["toxic"].kind == "multi_label"


def test_heads_keep_their_order() -> None:
    names = ["z", "a", "m"]
    assert list(made(heads={name: {"column": name} for name in names}).heads) == names


# sources


def test_forms_of_a_split() -> None:
    data = made(
        data__train={"hub": "owner/set", "split": "train[:90%]", "revision": "abc"},
        data__validation={"from": "train", "fraction": 0.2},
        data__test="test.csv",
        data__unlabeled=["inbox.txt", {"hub": "owner/more"}],
    ).data
    assert data.train.revision == "abc"  # type: ignore[union-attr]
    assert data.validation.fraction == 0.2 and data.test == "test.csv"  # type: ignore[union-attr]
    assert data.unlabeled[0] == "inbox.txt" and data.unlabeled[1].hub == "owner/more"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "data__validation",
            {"from": "train", "fraction": 2},
            ["data.validation.fraction: must be < 1.0, got 2"],
        ),
        (
            "data__test",
            {"from": "test", "fraction": 0.1},
            ["data.test.from: must be one of 'train', got 'test'"],
        ),
        ("data__validation", {"hub": "x", "splt": "y"}, ["data.validation.splt: unknown key"]),
        ("data__train", {"split": "y"}, ["data.train.hub: is required"]),
        ("data__train", 3, ["data.train: input should be a valid string, got 3"]),
        (
            "data__unlabeled",
            ["a.txt", {"hub": 2}],
            ["data.unlabeled.1.hub: input should be a valid string, got 2"],
        ),
    ],
)
def test_faults_of_a_source_are_of_the_form_it_has(key: str, value: Any, expected: list[str]) -> None:
    assert faults(**{key: value}) == [f"recipe: {line}" for line in expected]


# digest


def test_digest_is_independent_of_machine_and_folder(tmp_path: Path) -> None:
    path = written(tmp_path, BASE)
    recipe = load_recipe(path)
    for other in (
        load_recipe(path, data_root=tmp_path / "elsewhere"),
        load_recipe(path, overrides=["device=cpu", "trackers=[]"]),
        made(),
    ):
        assert other.digest() == recipe.digest()
    for override in ("seed=1", "student.epochs=11", "data.train=b.csv", "precision=no", "name=b"):
        assert load_recipe(path, overrides=[override]).digest() != recipe.digest()


def test_digest_of_a_value_is_independent_of_the_order_of_keys() -> None:
    assert json_digest({"a": 1, "b": [1, 2]}) == json_digest({"b": [1, 2], "a": 1})
    assert json_digest({"a": 1, "b": [1, 2]}) != json_digest({"a": 1, "b": [2, 1]})


def test_the_resolved_recipe_reads_back_from_json() -> None:
    recipe = made(data__validation={"from": "train", "fraction": 0.2}, data__test={"hub": "x"})
    dumped = json.loads(json.dumps(recipe.model_dump(mode="json", by_alias=True)))
    assert parse_recipe(dumped) == recipe and parse_recipe(dumped).digest() == recipe.digest()


def test_near() -> None:
    assert near("epohs", ["epochs", "lr"]) == " (did you mean 'epochs'?)"
    assert near("zzz", ["epochs", "lr"]) == near("a" * 900, ["a" * 899]) == ""


def test_columns_of_the_text() -> None:
    assert made().data.text_columns == ("text",)
    assert made(data__text=["title", "body"]).data.text_columns == ("title", "body")
    assert made(data__text="").data.text_columns == ("",)
    for value, fault in (([], "tuple should have at least 1 item"), (3, "input should be a valid string")):
        (line,) = faults(data__text=value)
        assert line.startswith(f"recipe: data.text: {fault}")


def test_names_of_encodings() -> None:
    assert made(data__encoding="UTF-16-LE").data.encoding == "UTF-16-LE"
    (line,) = faults(data__encoding="cp-1252")
    assert line == "recipe: data.encoding: unknown encoding 'cp-1252' (did you mean 'cp1252'?)"
    for name in ("hex", "idna"):
        assert faults(data__encoding=name)[0].startswith(f"recipe: data.encoding: unknown encoding {name!r}")
