"""Loads sequence classifiers of Hugging Face: any architecture, with its own tokenizer and labels."""

from __future__ import annotations

import logging as python_logging
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from teachers.checkpoints import EncoderError, classifier_identity, locate
from teachers.encoders import from_pretrained, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Kind = Literal["single_label", "multi_label"]
KINDS: dict[str, Kind] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
}
MAX_TOKENS = 512  # read of a text where neither the recipe nor the tokenizer has a lower limit
GENERIC = re.compile(r"label[ _-]?\d+", re.IGNORECASE)  # what transformers names labels without a name
INSTEAD = "fine-tune a teacher without it"


class Outputs(NamedTuple):
    """What a sequence classifier answers.

    Attributes:
        kind: single_label (softmax) or multi_label (sigmoid).
        labels: In the order of its logits.
    """

    kind: Kind
    labels: tuple[str, ...]

    @property
    def generic(self) -> bool:
        """Whether its labels have no names, as `LABEL_0`."""
        return all(GENERIC.fullmatch(label) for label in self.labels)


class HFClassifier(NamedTuple):
    """A sequence classifier in float32.

    Attributes:
        model: Gives `logits` `[texts, labels]` for `input_ids` and `attention_mask`.
        tokenizer: Its tokenizer.
        outputs: Its kind and labels.
        digest: Changes with its files, or with the commit of the hub that they are from.
        max_length: The tokens that its tokenizer reads of a text, 512 at most.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    outputs: Outputs
    digest: str
    max_length: int


def classifier_outputs(name: str) -> Outputs:
    """The kind and the labels of a classifier, from its configuration alone.

    Args:
        name: `package:NAME`, a folder, or a hub id with or without `@revision`.

    Raises:
        EncoderError: The configuration cannot be loaded, or is that of no classifier.
    """
    return _outputs(name, _config(name))


def load_hf_classifier(name: str) -> HFClassifier:
    """A sequence classifier and its tokenizer; safetensors alone, without remote code.

    Args:
        name: `package:NAME`, a folder, or a hub id with or without `@revision`.

    Raises:
        EncoderError: It cannot be loaded, is no classifier, lacks weights of one, or has no fast tokenizer.
    """
    from transformers import AutoModelForSequenceClassification

    place, config = locate(name), _config(name)
    outputs = _outputs(name, config)
    tokenizer = load_tokenizer(name, instead=INSTEAD)
    if tokenizer.pad_token_id is None:
        raise EncoderError(f"{name}: its tokenizer has no padding token (set pad_token and save it again)")
    if getattr(config, "pad_token_id", None) is None:  # decoders find the last token of a text by it
        config.pad_token_id = tokenizer.pad_token_id
    model, info = from_pretrained(
        AutoModelForSequenceClassification,
        name,
        place,
        INSTEAD,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers would initialise missing weights at random
    if missing := sorted(info["missing_keys"]):
        raise EncoderError(
            f"{name}: is no sequence classifier: {len(missing)} of its weights are missing, the first is "
            f"{missing[0]} (name a checkpoint that was fine-tuned to classify texts)"
        )
    rows = len(model.get_input_embeddings().weight)
    if (top := max(tokenizer.get_vocab().values())) >= rows:
        raise EncoderError(
            f"{name}: its tokenizer has token ids up to {top}, its embeddings have {rows} rows (save the "
            "tokenizer that it was fine-tuned with)"
        )
    digest = classifier_identity(name) + (getattr(config, "_commit_hash", None) or "")
    length = min(MAX_TOKENS, int(tokenizer.model_max_length))
    return HFClassifier(model.eval(), tokenizer, outputs, digest, length)


def _config(name: str) -> Any:
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # missing weights are told in a line
    logging.disable_progress_bar()
    python_logging.getLogger("huggingface_hub").setLevel(python_logging.ERROR)  # warnings about retries
    return from_pretrained(AutoConfig, name, locate(name), INSTEAD)


def _outputs(name: str, config: Any) -> Outputs:
    names = {int(number): str(label) for number, label in (config.id2label or {}).items()}
    if sorted(names) != [*range(len(names))]:
        raise EncoderError(
            f"{name}: id2label of its config.json numbers labels {sorted(names)}, expected 0 to "
            f"{len(names) - 1} (correct it)"
        )
    if len({*names.values()}) < len(names):
        twice = next(label for label in names.values() if [*names.values()].count(label) > 1)
        raise EncoderError(f"{name}: two of its labels are {twice!r} (correct id2label of its config.json)")
    problem = config.problem_type or ("single_label_classification" if len(names) > 1 else "regression")
    if problem not in KINDS or (KINDS[problem] == "single_label" and len(names) < 2):
        what = f"problem_type {config.problem_type!r}" if config.problem_type else "no problem_type"
        raise EncoderError(
            f"{name}: has {what} and {len(names)} label{'s' * (len(names) != 1)}, expected a classifier: "
            "single_label_classification of two labels or more, or multi_label_classification (correct "
            "its config.json, or name another)"
        )
    return Outputs(KINDS[problem], tuple(names[number] for number in range(len(names))))
