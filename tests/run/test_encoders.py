"""Encoders of every kind, tiny and random, as teacher and as student: they work, or `check` refuses them.

The tokenizers are of the kinds that the encoders have: WordPiece, byte-level BPE with and without special
tokens, Unigram.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.recipe.load import dump_yaml

NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHAPE = {**NARROW, "max_position_embeddings": 64}
OFFSET = {**NARROW, "max_position_embeddings": 66}  # positions that begin after the padding's
GROUPS = dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"), 2)
BART = {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in
        (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}  # fmt: skip
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}

# the kind of tokenizer, the class, and the settings of its configuration
ENCODERS = {
    "bert": ("wordpiece", "Bert", SHAPE),
    "distilbert": ("wordpiece", "DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
                   "max_position_embeddings": 64}),
    "electra": ("wordpiece", "Electra", {**SHAPE, "embedding_size": 16}),
    "mpnet": ("wordpiece", "MPNet", {**OFFSET, "pad_token_id": 0}),
    "mobilebert": ("wordpiece", "MobileBert", {**SHAPE, "embedding_size": 16, "intra_bottleneck_size": 16}),
    "squeezebert": ("wordpiece", "SqueezeBert", {**SHAPE, **GROUPS, "embedding_size": 32}),
    "convbert": ("wordpiece", "ConvBert", {**SHAPE, "embedding_size": 16}),
    "roberta": ("bpe", "Roberta", {**OFFSET, "pad_token_id": 1}),
    "modernbert": ("bpe", "ModernBert", {**SHAPE, "local_attention": 16, "pad_token_id": 1, "cls_token_id": 0,
                   "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}),
    "bart": ("bpe", "Bart", {**BART, "d_model": 32, "max_position_embeddings": 64}),
    "gpt2": ("bpe without special tokens", "GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2,
             "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}),
    "xlm-r": ("unigram", "XLMRoberta", {**OFFSET, "pad_token_id": 0}),
    "albert": ("unigram", "Albert", {**SHAPE, "embedding_size": 16}),
    "albert of equal widths": ("unigram", "Albert", {**SHAPE, "embedding_size": 32}),
    "deberta-v2": ("unigram", "DebertaV2", {**SHAPE, **RELATIVE, "type_vocab_size": 0}),
    "xlnet": ("unigram with special tokens last", "XLNet", {"d_model": 32, "n_layer": 2, "n_head": 2,
              "d_inner": 64}),
    "t5": ("unigram", "T5", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}),
    "fnet": ("unigram", "FNet", {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}),
}  # fmt: skip
REFUSED = {
    "bart": "bart is an encoder-decoder, expected an encoder alone (name another encoder)",
    "t5": "t5 is an encoder-decoder, expected an encoder alone (name another encoder)",
    "fnet": "FNetModel takes no attention_mask, expected an encoder of padded texts (name another encoder)",
    # its convolutions read the padding
    "convbert": "change with its padding, which the attention mask excludes (name another encoder)",
}


@pytest.fixture(scope="module")
def tokenizer_of(tiny_tokenizer):
    """A function (kind) that gives a fast tokenizer of the toy corpus."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = [w for w in tiny_tokenizer.get_vocab() if w.isalpha()]
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}

    def build(kind):
        if kind == "wordpiece":
            return tiny_tokenizer
        special = dict(names)
        if kind.startswith("bpe"):
            special = {"unk_token": "<|end|>"} if "without" in kind else special
            backend = Tokenizer(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            letters = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "vocab_size": 320}
            trainer = trainers.BpeTrainer(special_tokens=[*special.values()], show_progress=False, **letters)
        else:
            backend = Tokenizer(models.Unigram())
            backend.pre_tokenizer = pre_tokenizers.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=150, special_tokens=[*special.values()], unk_token="<unk>", show_progress=False
            )
        backend.train_from_iterator(sorted(words) * 3, trainer)
        if "cls_token" in special:
            order = "$A </s> <s>" if "last" in kind else "<s> $A </s>"
            ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
            backend.post_processor = processors.TemplateProcessing(order, special_tokens=ends)
        return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)

    return build


@pytest.fixture(scope="module")
def encoder_of(tokenizer_of, tmp_path_factory):
    """A function (name) that gives the folder of an encoder."""
    import torch
    import transformers

    root = tmp_path_factory.mktemp("encoders")

    def build(name):
        folder = root / name
        if not folder.exists():
            kind, prefix, settings = ENCODERS[name]
            tokenizer = tokenizer_of(kind)
            config = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer), **settings)
            torch.manual_seed(0)
            getattr(transformers, f"{prefix}Model")(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="module")
def write_recipe(write_csv, tmp_path_factory):
    """A function (**sections) that writes a recipe of a few steps; gives its path."""
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "train.csv", 90, 1)
    write_csv(folder / "test.csv", 30, 2)
    shape = {"layers": 1, "hidden": 16, "attention_heads": 2}
    settings = {
        "name": "zoo",
        "data": {"train": "train.csv", "validation": {"from": "train", "fraction": 0.3}, "test": "test.csv"},
        "heads": {"intent": {"column": "intent"}},
        "augment": {"copies": 0},
        "gates": {"int8_drop": 1.0, "int8_changed": 1.0, "int8_log_loss": 9.0},
        "precision": "no",
        "trackers": [],
    }

    def write(teacher, **student):
        student = {**(shape if "encoder" not in student else {}), "epochs": 1, **student}
        path = folder / "recipe.yaml"
        sections = {"teacher": {"encoder": str(teacher), "epochs": 1}, "student": student}
        path.write_text(dump_yaml(settings | sections), "utf-8")
        return str(path)

    return write


@pytest.fixture(scope="module")
def labelled(write_recipe, encoder_of, tmp_path_factory):
    """A run whose texts are labelled by a BERT."""
    run = tmp_path_factory.mktemp("labelled") / "run"
    assert main(["run", write_recipe(encoder_of("bert")), "--out", str(run), "--to", "label"]) == 0
    return run


def refused(capfd, recipe: str, run: Path) -> str:
    """The one line with which `check` and `run` refuse a recipe, before there is a folder."""
    lines = []
    for command in (["check", recipe, "--no-measure"], ["run", recipe, "--out", str(run)]):
        capfd.readouterr()
        assert main(command) == 2
        (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("distill: ")]
        lines.append(line)
    assert lines[0] == lines[1] and not run.exists()
    return lines[0]


def checked(recipe: str, run: Path) -> str:
    """How the student of a recipe that runs was initialised; its graph computes what torch computes."""
    assert main(["check", recipe, "--no-measure"]) == 0
    assert main(["run", recipe, "--out", str(run), "--to", "check"]) == 0
    metrics = json.loads((run / "stages/check/stage.json").read_text("utf-8"))["metrics"]
    assert metrics["parity"]["heads"]["intent"]["max_difference"] < 1e-4
    return json.loads((run / "stages/fit_student/stage.json").read_text("utf-8"))["metrics"]["start"]


@pytest.mark.parametrize("name", ENCODERS)
def test_as_teacher(name, encoder_of, write_recipe, tmp_path, capfd):
    recipe, run = write_recipe(encoder_of(name)), tmp_path / "run"
    if name in REFUSED:
        assert refused(capfd, recipe, run).endswith(REFUSED[name])
        return
    # positions are relative or rotary, or wider than the words
    without = ("deberta-v2", "xlnet", "modernbert", "mobilebert")
    parts = "word embeddings" if name in without else "word embeddings, position embeddings"
    assert checked(recipe, run) == f"teacher: {parts}"


@pytest.mark.exporting
@pytest.mark.parametrize("name", ENCODERS)
def test_as_student(name, encoder_of, write_recipe, labelled, tmp_path, capfd):
    recipe, run = write_recipe(encoder_of("bert"), encoder=str(encoder_of(name))), tmp_path / "run"
    if name in REFUSED:
        assert refused(capfd, recipe, run).endswith(REFUSED[name])
        return
    shutil.copytree(labelled, run)
    assert checked(recipe, run) == f"checkpoint: {encoder_of(name)}"
    assert "fit_teacher: done before" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["albert of equal widths", "gpt2", "xlnet", "roberta", "modernbert"])
def test_a_student_as_wide_as_its_teacher(name, encoder_of, write_recipe, tmp_path):
    recipe = write_recipe(encoder_of(name), hidden=32, start="teacher")
    assert checked(recipe, tmp_path / "run").startswith("teacher: word embeddings")


@pytest.mark.parametrize("name", ["albert", "electra", "mobilebert"])
def test_a_student_wider_than_the_embeddings(name, encoder_of, write_recipe, tmp_path, capfd):
    recipe, run = write_recipe(encoder_of(name), hidden=32, start="teacher"), tmp_path / "run"
    reason = "the student is 32 wide, expected at most the teacher's 16"
    assert reason in refused(capfd, recipe, run)
    recipe = write_recipe(encoder_of(name), hidden=32)
    assert checked(recipe, run) == "random"
    note = f"student.start: random, since the teacher cannot initialise it: {reason}"
    assert capfd.readouterr().err.splitlines().count(note) == 2  # of check and of run


def test_the_first_token_of_a_decoder_reads_nothing(encoder_of, write_recipe, tmp_path, capfd):
    recipe = write_recipe(encoder_of("gpt2"))
    text = Path(recipe).read_text("utf-8").replace("teacher:\n", "teacher:\n  pooling: cls\n")
    Path(recipe).write_text(text, "utf-8")
    line = refused(capfd, recipe, tmp_path / "run")
    assert line.endswith("its logits do not depend on the last token of a text (set pooling: mean)")


def test_what_is_trained_is_not_tried_again(labelled, encoder_of, write_recipe, tmp_path, monkeypatch):
    run = shutil.copytree(labelled, tmp_path / "run")
    command = ["run", write_recipe(encoder_of("bert")), "--out", str(run), "--to", "fit_student"]
    monkeypatch.setattr("distill.probe.load_encoder", None)  # the teacher of the run is taken
    assert main(command) == 0
    monkeypatch.setattr("distill.pipeline.probe", None)
    assert main(command) == 0
