"""Recipes of packed networks: descriptions of labels, and settings that such a network has no use for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.cli.main import main
from distill.models.network_teacher import adopt
from distill.recipe.data_section import RecipeError
from distill.recipe.load import dump_yaml, load_recipe, parse_recipe

COLUMNS = "}\n  flags: {columns: [now, please], "
DATED = "{2024-01-01: x, b: null}"
TEXTS = {"late": "the box is late", "money": "refund my order"}


def recipe(head: str, rest: str = "") -> str:
    return f"name: toy\ndata: {{train: train.csv}}\nheads:\n  intent: {{column: intent, {head}}}\n{rest}\n"


def read(folder: Path, text: str) -> Any:
    (folder / "recipe.yaml").write_text(text, "utf-8")
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("head", "labels", "descriptions"),
    [
        ("labels: {late: x, money: null}", ("late", "money"), {"late": "x"}),
        (
            "labels: {late: x, money: null}, descriptions: {money: y}",
            ("late", "money"),
            {"late": "x", "money": "y"},
        ),
        (
            "labels: {late: x, money: y}, descriptions: {money: z}",
            ("late", "money"),
            {"late": "x", "money": "z"},
        ),
        ("labels: [late, money], descriptions: {money: y}", ("late", "money"), {"money": "y"}),
        ("descriptions: {money: y}", None, {"money": "y"}),
        ("labels: {1: x, 2: y}", ("1", "2"), {"1": "x", "2": "y"}),
        ("labels: {yes: x, no: y}", ("yes", "no"), {"yes": "x", "no": "y"}),
        ("labels: {' a  b ': x, c: null}", ("a b", "c"), {"a b": "x"}),
    ],
)
def test_descriptions(tmp_path: Path, head: str, labels: Any, descriptions: dict[str, str]) -> None:
    made = read(tmp_path, recipe(head))
    assert made.heads["intent"].labels == labels and made.heads["intent"].descriptions == descriptions
    again = parse_recipe(made.model_dump(mode="json", exclude_none=True, by_alias=True))
    assert again.heads == made.heads, "what a run writes down"


@pytest.mark.parametrize(
    ("head", "rest", "message"),
    [
        ("labels: {a: x}, descriptions: [b]", "", "heads.intent.descriptions: input should be a valid dict"),
        ("labels: {a: x}, descriptions: [a]", "", "heads.intent.descriptions: input should be a valid dict"),
        ("labels: {a: x}, descriptions: {b: y}", "", "heads.intent: descriptions: no label 'b'"),
        ("labels: [late], descriptions: {lat: y}", "", "no label 'lat' (did you mean 'late'?)"),
        ("labels: [a], descriptions: {b: y}", "", "heads.intent: descriptions: no label 'b'"),
        (
            COLUMNS + "descriptions: {nox: y}",
            "",
            "heads.flags: descriptions: no label 'nox' (did you mean 'now'",
        ),
        ("labels: {a: 3}", "", "heads.intent.descriptions.a: input should be a valid string, got 3"),
        ("labels: {a: 2024-01-01}", "", "descriptions.a: input should be a valid string, got datetime.date"),
        (f"labels: {DATED}", "", "heads.intent.labels.0: input should be a valid string, got datetime.date"),
        ("labels: {null: x}", "", "heads.intent.labels.0: input should be a valid string, got None"),
        ("labels: {a: [x]}", "", "heads.intent.descriptions.a: input should be a valid string, got ['x']"),
        ("labels: {}", "", "heads.intent.labels: "),
        ("hypothesis: [a]", "", "heads.intent.hypothesis: input should be a valid string, got ['a']"),
        ("", "student: {negatives: 3}", "student.negatives: is for network: packed (leave it out"),
        (
            "",
            "teacher: {network: packed, pooling: cls}",
            "teacher.pooling: a packed network scores a label's",
        ),
        (
            "",
            "student: {network: packed, pooling: cls}",
            "student.pooling: a packed network scores a label's",
        ),
        ("", "student: {network: packed, vocabulary: 300}", "student.vocabulary: a packed network may meet"),
        ("", "student: {network: packed}\nmatch: {hidden: 1}", "match: is for networks of heads (leave it"),
        ("", "teacher: {network: packed}\nmatch: {hidden: 1}", "match: is for networks of heads (leave it"),
        ("", "student: {network: packed}\ndistillation: {loss: standardized}", "(use kl)"),
        ("", "student: {network: other}", "student.network: must be one of 'heads' or 'packed', got 'other'"),
        ("", "teacher: {network: packed, negatives: 0}", "teacher.negatives: must be > 0, got 0"),
        ("", "teacher: {network: packed, networks: [x]}", "are used as they are; leave out network"),
    ],
)
def test_invalid_recipes(tmp_path: Path, head: str, rest: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, recipe(head, rest))
    assert message in str(caught.value) and caught.value.exit_code == 2


# what `check` tries


@pytest.fixture
def job(tmp_path: Path, toy_corpus: Any, tiny_encoder_folder: Any) -> Any:
    """A function (head, student, teacher) that writes labelled texts and a recipe of a packed teacher."""
    encoder = tiny_encoder_folder(tmp_path, hidden=32, layers=2)

    def write(
        head: dict[str, Any], student: Any = None, teacher: Any = None, labels: Any = ("late", "money")
    ) -> str:
        texts = toy_corpus(60).texts
        rows = [f"{text},{labels[number % len(labels)]}" for number, text in enumerate(texts)]
        (tmp_path / "train.csv").write_text("\n".join(["text,intent", *rows]), "utf-8")
        settings = {
            "name": "toy",
            "data": {"train": "train.csv"},
            "heads": {"intent": {"column": "intent", **head}},
            "teacher": {"encoder": str(encoder), "network": "packed", **(teacher or {})},
            "student": {"layers": 1, "hidden": 16, "attention_heads": 2, **(student or {})},
            "trackers": [],
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_yaml(settings), "utf-8")
        return str(path)

    return write


def test_descriptions_of_columns(job: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also of a column that is 0 in every row of train."""
    described = {"now": "x", "please": "y"}
    path = job({"column": None, "columns": ["now", "please"], "descriptions": described})
    rows = [f"{text} {number},{number % 2},0" for number, text in enumerate(["late", "red box"] * 20)]
    (tmp_path / "train.csv").write_text("\n".join(["text,now,please", *rows]), "utf-8")
    assert main(["check", path, "--no-measure"]) == 0, capfd.readouterr()


def test_check_of_packed_recipes(job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for student in ({}, {"network": "packed"}):
        assert main(["check", job({"labels": TEXTS, "hypothesis": "they"}, student), "--no-measure"]) == 0, (
            capfd.readouterr()
        )
        assert ["intent", "2"] in [line.split()[:2] for line in capfd.readouterr().out.splitlines()]
    assert main(["check", job({}), "--no-measure"]) == 0, "labels of train"


PACKED, HEADS = {"network": "packed"}, {"network": "heads"}


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        ({}, ("track", "thank"), "heads.intent: labels 'track' and 'thank' are the same tokens"),
        ({}, ("late", "Late"), "are the same tokens to the network (rename one, or describe it in `descri"),
        (
            {"labels": {"late": "red " * 40, "money": None}},
            ("late", "money"),
            "tokens, expected at most 21 (shorten it)",
        ),
        ({"hypothesis": "red " * 40}, ("late", "money"), "heads.intent: hypothesis 'red red"),
        (
            {"descriptions": {"monay": "x"}},
            ("late", "money"),
            "no text of train has label 'monay' (did you mean",
        ),
    ],
)
@pytest.mark.parametrize("sides", [(PACKED, HEADS), (HEADS, PACKED)])
def test_labels_that_it_cannot_read(
    job: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    head: Any,
    labels: Any,
    message: str,
    sides: Any,
) -> None:
    teacher, student = sides
    path = job(head, student, teacher, labels)
    for command in (["check", path], ["run", path, "--out", str(tmp_path / "run")]):
        assert main(command) == 2
        error = capfd.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "run/stages/fit_teacher/stage.json").exists(), "before the teacher is trained"


@pytest.mark.parametrize("kind", ["Roberta", "MPNet", "Electra"])
def test_encoders_that_it_cannot_be_built_of(
    job: Any, tmp_path: Path, tiny_tokenizer: Any, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    import transformers

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tiny_tokenizer), pad_token_id=0, **shape)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    for teacher, student in (
        ({"encoder": str(tmp_path / "other")}, {}),
        (
            HEADS,
            {
                "encoder": str(tmp_path / "other"),
                **PACKED,
                "layers": None,
                "hidden": None,
                "attention_heads": None,
            },
        ),
    ):
        assert main(["check", job({}, student, teacher)]) == 2
        error = capfd.readouterr().err
        assert f"network: packed needs an encoder of type bert or distilbert, got {kind.lower()}" in error
        assert error.count("\n") == 1


def test_a_packed_teacher_of_other_heads(tmp_path: Path, tiny_bert: Any, tiny_tokenizer: Any) -> None:
    from distill.heads import Head
    from distill.models.packed import PackedClassifier
    from distill.models.saved_networks import load_classifier, save_classifier

    intent = Head("intent", "single_label", ("late", "money"))
    flags = Head("flags", "multi_label", ("now", "please"))
    for name, heads in (("one", [intent]), ("two", [intent, flags])):
        (tmp_path / name).mkdir()
        save_classifier(PackedClassifier(tiny_bert(), heads), tiny_tokenizer, tmp_path / name)
    topic = Head("topic", "single_label", ("red", "blue", "shop"), descriptions={"red": "the box"})
    (tmp_path / "stage").mkdir()
    adopt([str(tmp_path / "one")], [topic], tmp_path / "stage")  # a network of one head scores any
    network, _ = load_classifier(tmp_path / "stage")
    assert network.heads == (topic,) and network.heads[0].descriptions == {"red": "the box"}
    adopt([str(tmp_path / "two")], [flags], tmp_path / "stage")
    for folder, heads, message in (
        ("one", [flags], "head 'flags' (multi_label), expected one of intent (single_label)"),
        (
            "two",
            [topic],
            "head 'topic' (single_label), expected one of intent (single_label), flags (multi_label)",
        ),
    ):
        with pytest.raises(RecipeError) as caught:
            adopt([str(tmp_path / folder)], heads, tmp_path / "stage")
        assert str(caught.value).startswith(f"teacher.networks: {tmp_path / folder}: {message}")
