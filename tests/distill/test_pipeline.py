"""What a stage's result depends on: which setting redoes which stages. Trains nothing."""

from pathlib import Path
from typing import Any

import pytest

from distill.pipeline import PRETRAINING_STAGES, STAGES, stage_digests, stage_inputs
from distill.recipe.load import parse_recipe
from distill.recipe.schema import Pretraining

# a setting, another value of it, and the stages that it redoes: all from the named one on
REDOES = [
    ("seed", 1, "prepare"),
    ("data.text", "body", "prepare"),
    ("data.text", ["text", "body"], "prepare"),
    ("data.encoding", "cp1252", "prepare"),
    ("data.max_bad_rows", 0.5, "prepare"),
    ("data.train", "other.csv", "prepare"),
    ("heads.intent.weight", 2.0, "prepare"),
    ("heads.intent.min_texts", 3, "prepare"),
    ("heads.intent.hypothesis", "they want", "prepare"),
    ("heads.intent.descriptions", {"a": "b"}, "prepare"),
    ("heads.intent.class_weight", "balanced", "prepare"),
    ("heads.flags.class_weight", {"a": 2.0}, "prepare"),
    ("heads.flags.thresholds", {"precision": 0.9}, "calibrate"),
    ("heads.flags.thresholds", "f1", None),
    ("heads.intent.abstain", {"coverage": 0.9}, "check"),
    ("data.oos", {"test": "other.csv"}, "check"),
    ("teacher.network", "packed", "fit_teacher"),
    ("student.network", "packed", "fit_student"),
    ("teacher.epochs", 9, "fit_teacher"),
    ("teacher.max_length", 64, "fit_teacher"),
    ("precision", "no", "fit_teacher"),
    ("augment.copies", 3, "label"),
    ("augment.mask", 0.2, "label"),
    ("student.lr", 0.5, "fit_student"),
    ("student.seed", 3, "fit_student"),
    ("distillation.soft_weight", 0.5, "fit_student"),
    ("match.hidden", 1.0, "fit_student"),
    ("export.max_length", 64, "fit_student"),
    ("export.quantize", "none", "export"),
    ("gates.int8_drop", 0.1, "check"),
    ("name", "other", "bundle"),
    ("data.licence", "MIT", "bundle"),
    ("device", "cpu", None),
    ("trackers", [], None),
    ("checkpoint_every", 9, None),
]


@pytest.fixture
def data(tmp_path: Path, tiny_encoder_folder: Any) -> dict[str, Any]:
    """A recipe of small files."""
    for name in ("train.csv", "other.csv"):
        (tmp_path / name).write_text(f"text,body,intent\n{name},b,a\n", "utf-8")
    for name in ("inbox.txt", "more.txt"):
        (tmp_path / name).write_text(f"{name}\n", "utf-8")
    return {
        "name": "toy",
        "data": {"root": str(tmp_path), "train": "train.csv", "unlabeled": ["inbox.txt"]},
        "heads": {"intent": {"column": "intent"}, "flags": {"column": "body", "kind": "multi_label"}},
        "teacher": {"encoder": str(tiny_encoder_folder(tmp_path, hidden=32))},
        "student": {"start": "random"},
    }


def with_setting(recipe: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return recipe | {first: with_setting(recipe.get(first, {}), rest, value) if rest else value}


def redone(stages: Any, before: Any, after: Any) -> list[str]:
    digests = [stage_digests(stages, stage_inputs(recipe)) for recipe in (before, after)]
    return [stage.name for stage in stages if digests[0][stage.name] != digests[1][stage.name]]


def test_negatives_redo_a_packed_teacher(data: dict[str, Any]) -> None:
    packed = with_setting(data, "teacher.network", "packed")
    more = with_setting(packed, "teacher.negatives", 3)
    assert redone(STAGES, parse_recipe(packed), parse_recipe(more))[0] == "fit_teacher"


def test_settings_that_are_left_open_are_no_inputs(data: dict[str, Any]) -> None:
    """So a run that finished before these settings existed stays done."""
    inputs = str(stage_inputs(parse_recipe(data)))
    assert not [
        x
        for x in ("network'", "negatives", "hypothesis", "descriptions", "mixing", "max_texts", "fill")
        if x in inputs
    ]


@pytest.mark.parametrize(("key", "value", "first"), REDOES, ids=[key for key, _, _ in REDOES])
def test_a_setting_redoes_the_stages_from_the_first_that_depends_on_it(
    data: dict[str, Any], key: str, value: Any, first: str | None
) -> None:
    names = [stage.name for stage in STAGES]
    expected = names[names.index(first) :] if first else []
    assert redone(STAGES, parse_recipe(data), parse_recipe(with_setting(data, key, value))) == expected


def test_settings_of_several_sources(data: dict[str, Any]) -> None:
    names = [stage.name for stage in STAGES]
    several = with_setting(data, "data.train", [{"file": "train.csv"}, {"file": "other.csv"}])
    for key, value, first in (
        ("data.mixing", 1.0, "prepare"),
        ("data.max_texts", 5, "prepare"),
        ("data.train", [{"file": "other.csv"}, {"file": "train.csv"}], "prepare"),
        ("data.train", [{"file": "train.csv"}, {"file": "other.csv", "text": "body"}], "prepare"),
        ("distillation.fill", False, "fit_student"),
    ):
        changed = parse_recipe(with_setting(several, key, value))
        assert redone(STAGES, parse_recipe(several), changed) == names[names.index(first) :]


def test_other_unlabelled_texts_leave_the_teacher_done(data: dict[str, Any]) -> None:
    names = [stage.name for stage in STAGES if stage.name != "fit_teacher"]
    changed = with_setting(data, "data.unlabeled", ["more.txt"])
    assert redone(STAGES, parse_recipe(data), parse_recipe(changed)) == names


ASKED = {"llm": {"base_url": "http://localhost:1/v1", "model": "open"}}


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("teacher.llm.model", "other", "fit_teacher"),
        ("teacher.llm.instructions", "Mails.", "fit_teacher"),
        ("teacher.llm.heads", ["intent"], "fit_teacher"),
        ("teacher.llm.samples", 9, "fit_teacher"),
        ("data.unlabeled", ["more.txt"], "prepare"),
        ("teacher.llm.base_url", "http://localhost:2/v1", None),
        ("teacher.llm.concurrency", 1, None),
        ("teacher.llm.max_requests", 9, None),
        ("teacher.llm.input_price", 9, None),
        ("teacher.llm.cache", "cache", None),
        ("teacher.llm.api_key_env", "KEY", None),
        ("teacher.llm.terms", "MIT", "bundle"),
    ],
)
def test_what_a_language_model_is_asked_redoes_stages_and_how_does_not(
    data: dict[str, Any], key: str, value: Any, first: str | None
) -> None:
    names = [stage.name for stage in STAGES]
    asked = with_setting(data, "teacher", data["teacher"] | ASKED)
    before, after = (parse_recipe(some) for some in (asked, with_setting(asked, key, value)))
    assert redone(STAGES, before, after) == (names[names.index(first) :] if first else [])


def test_contents_and_weights_are_inputs(data: dict[str, Any], tmp_path: Path) -> None:
    recipe, names = parse_recipe(data), [stage.name for stage in STAGES]
    before = stage_digests(STAGES, stage_inputs(recipe))

    def redone_now() -> list[str]:
        now = stage_digests(STAGES, stage_inputs(recipe))
        return [name for name in names if now[name] != before[name]]

    weights = tmp_path / "tiny-bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert redone_now() == names[1:]
    (tmp_path / "train.csv").write_text("text,body,intent\nothers,b,a\n", "utf-8")
    assert redone_now() == names


def test_the_order_of_heads_is_an_input(data: dict[str, Any]) -> None:
    heads = {"intent": {"column": "intent"}, "body": {"column": "body"}}
    turned = dict(reversed(heads.items()))
    recipes = [parse_recipe(data | {"heads": some}) for some in (heads, turned)]
    assert redone(STAGES, *recipes) == [stage.name for stage in STAGES]


def test_a_setting_left_open_is_no_input(data: dict[str, Any]) -> None:
    """So an option of a later version, left open, leaves the stages of finished runs done."""

    def none_in(value: Any) -> bool:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return value is None or any(none_in(item) for item in inner)

    inputs = stage_inputs(parse_recipe(data))
    assert [name for name, value in inputs.items() if none_in(value)] == ["licence", "max_length"]


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("data.unlabeled", ["more.txt"], "prepare"),
        ("max_length", 64, "fit_teacher"),
        ("teacher.pooling", "cls", "fit_teacher"),
        ("augment.copies", 3, "label"),
        ("student.epochs", 3, "fit_student"),
        ("match.hidden", 1.0, "fit_student"),
        ("name", "other", None),
    ],
)
def test_settings_of_a_pretraining(data: dict[str, Any], key: str, value: Any, first: str | None) -> None:
    recipe = {key: data[key] for key in ("name", "teacher")}
    recipe["data"] = {"root": data["data"]["root"], "unlabeled": ["inbox.txt"]}
    names = [stage.name for stage in PRETRAINING_STAGES]
    recipes = [Pretraining.model_validate(some) for some in (recipe, with_setting(recipe, key, value))]
    assert redone(PRETRAINING_STAGES, *recipes) == (names[names.index(first) :] if first else [])


def test_stages_come_with_every_setting(data: dict[str, Any]) -> None:
    """Each section of the recipe is an input of some stage, but for where and how a run is watched."""
    inputs = set(stage_inputs(parse_recipe(data)))
    used = {name for stage in STAGES for name in stage.inputs}
    assert inputs - used == {"device", "trackers", "export", "checkpoint_every"}
    assert used - inputs == {"calibration", "abstain", "oos"}  # of which the recipe asks nothing


def test_merged_classifiers_and_soft_labels_are_inputs_by_their_content(
    data: dict[str, Any], tmp_path: Path, classifier_folder: Any
) -> None:
    folder = classifier_folder(tmp_path / "classifier", trained=False)
    (tmp_path / "soft.jsonl").write_text('{"text": "a", "intent": {"a": 1}}\n', "utf-8")
    plain = stage_digests(STAGES, stage_inputs(parse_recipe(data)))
    terms = "for research"

    def digests(stated: str | None = None) -> dict[str, str]:
        merge = {"intent": {"model": str(folder), "terms": stated}}
        teacher = {"merge": merge, "soft_labels": {"files": "soft.jsonl", "terms": stated}}
        return stage_digests(
            STAGES, stage_inputs(parse_recipe(data | {"teacher": data["teacher"] | teacher}))
        )

    first = digests()
    assert next(name for name in first if first[name] != plain[name]) == "fit_teacher"
    stated = digests(terms)
    assert [name for name in first if first[name] != stated[name]] == ["bundle"]
    for path in (folder / "tokenizer_config.json", tmp_path / "soft.jsonl"):
        before = digests()
        path.write_text(path.read_text("utf-8") + "\n", "utf-8")
        after = digests()
        assert next(name for name in before if before[name] != after[name]) == "fit_teacher"


def test_unlabelled_texts_that_a_merged_teacher_answers_are_inputs_of_the_teacher(
    data: dict[str, Any], tmp_path: Path, classifier_folder: Any
) -> None:
    folder = classifier_folder(tmp_path / "classifier", trained=False)
    (tmp_path / "more.txt").write_text("one text\n", "utf-8")

    def digest(**settings: Any) -> str:
        teacher = data["teacher"] | {"merge": {"intent": {"model": str(folder)}}, **settings}
        recipe = data | {"teacher": teacher, "data": data["data"] | {"unlabeled": ["more.txt"]}}
        return stage_digests(STAGES, stage_inputs(parse_recipe(recipe)))["fit_teacher"]

    before = digest(), digest(fit_merged=True)
    (tmp_path / "more.txt").write_text("one text\nanother text\n", "utf-8")
    assert digest() == before[0] and digest(fit_merged=True) != before[1]
