from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, GPT2Config, GPT2ForSequenceClassification

from teachers.checkpoints import EncoderError, classifier_identity
from teachers.hf_classifier import classifier_outputs, load_hf_classifier

ClassifierFolder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, classifier_folder: ClassifierFolder) -> Path:
    return classifier_folder(tmp_path / "classifier", trained=False)


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text("utf-8")) | settings
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "mpnet"])
def test_any_architecture(tmp_path: Path, classifier_folder: ClassifierFolder, architecture: str) -> None:
    name = str(classifier_folder(tmp_path / "a", "flags", architecture, trained=False))
    found = load_hf_classifier(name)
    assert found.outputs == classifier_outputs(name) == ("multi_label", ("urgent", "polite"))
    assert found.model.config.model_type == architecture and not found.model.training
    assert found.tokenizer.is_fast and found.max_length == 32
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "labels, problem, kind",
    [
        (3, None, "single_label"),
        (2, "single_label_classification", "single_label"),
        (1, "multi_label_classification", "multi_label"),
    ],
)
def test_the_kind_is_that_of_problem_type(folder: Path, labels: int, problem: str | None, kind: str) -> None:
    configure(folder, problem_type=problem, id2label={i: f"LABEL_{i}" for i in range(labels)}, label2id=None)
    outputs = classifier_outputs(str(folder))
    assert outputs.kind == kind and len(outputs.labels) == labels and outputs.generic


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"problem_type": "regression"}, "has problem_type 'regression' and 3 labels, expected a classifier"),
        (
            {"problem_type": None, "id2label": {0: "score"}, "label2id": None},
            "has no problem_type and 1 label,",
        ),
        ({"id2label": {0: "yes"}, "label2id": None}, "'single_label_classification' and 1 label, expected"),
        ({"id2label": {1: "a", 2: "b"}, "label2id": None}, "numbers labels [1, 2], expected 0 to 1"),
        ({"id2label": {0: "a", 1: "a"}, "label2id": None}, "two of its labels are 'a'"),
        ({"id2label": {i: f"l{i}" for i in range(4)}, "label2id": None}, "cannot be loaded"),
    ],
)
def test_what_is_no_classifier_is_refused(folder: Path, settings: Any, message: str) -> None:
    configure(folder, **settings)
    with pytest.raises(EncoderError) as error:
        load_hf_classifier(str(folder))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_encoder_without_classification_weights_is_refused(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(EncoderError, match=r"is no sequence classifier: \d of its weights are missing"):
        load_hf_classifier(str(folder))


def test_a_pickle_is_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"pytorch_model.bin is a pickle, which is not loaded"):
        load_hf_classifier(str(folder))


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    configure(folder, auto_map={"AutoConfig": "mine.Config"}, model_type="mine")
    (folder / "mine.py").write_text("raise SystemExit('run')", "utf-8")
    with pytest.raises(EncoderError, match=r"needs the code in its folder, which is not run"):
        classifier_outputs(str(folder))


def test_a_missing_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    with pytest.raises(EncoderError, match="its tokenizer cannot be loaded"):
        load_hf_classifier(str(folder))


def test_a_tokenizer_of_another_model(folder: Path, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([f"new{i}" for i in range(9)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(EncoderError, match=r"its tokenizer has token ids up to \d+, its embeddings have"):
        load_hf_classifier(str(folder))


def test_the_hub_is_out_of_reach() -> None:
    with pytest.raises(EncoderError, match=r"from the hub: .+ or name a local folder"):
        load_hf_classifier("nobody/nothing@main")


def test_the_identity_changes_with_every_file_that_is_read(folder: Path) -> None:
    found = [classifier_identity(str(folder))]
    (folder / "README.md").write_text("more", "utf-8")
    assert classifier_identity(str(folder)) == found[0]
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        with (folder / name).open("ab") as file:
            file.write(b" ")
        found.append(classifier_identity(str(folder)))
    assert len({*found}) == 4
    assert classifier_identity("org/name@rev") == "org/name@rev"


def test_a_decoder_finds_the_last_token_by_its_padding(folder: Path) -> None:
    load_hf_classifier(str(folder)).tokenizer.save_pretrained(folder)
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 64}
    GPT2ForSequenceClassification(GPT2Config(num_labels=3, **shape)).save_pretrained(folder)
    found = load_hf_classifier(str(folder))
    assert found.model.config.pad_token_id == found.tokenizer.pad_token_id == 1
