"""Loads encoders: transformers without heads or pooler, and their fast tokenizers."""

from __future__ import annotations

import logging as python_logging
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch

from teachers.checkpoints import EncoderError, Location, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# names of the dropout rates in the configurations of bert, distilbert, modernbert and their relatives
DROPOUT = ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout")
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


def load_encoder(
    name: str,
    *,
    sha256: str | None = None,
    layers: int | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """An encoder in float32, and its tokenizer.

    Args:
        name: `package:NAME`, a folder, or a hub id with or without `@revision`.
        sha256: Expected digest of the weights file.
        layers: Number of layers to keep, from the first; by default all.
        dropout: Rate of hidden states; by default that of the encoder's configuration.
        attention_dropout: Rate of attention weights; by default that of the encoder's configuration.

    Raises:
        EncoderError: The encoder cannot be loaded, has too few layers, or has no fast tokenizer.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    place = locate(name, sha256)
    logging.set_verbosity_error()  # the missing pooler would print a page of warnings
    logging.disable_progress_bar()
    python_logging.getLogger("huggingface_hub").setLevel(python_logging.ERROR)  # warnings about retries
    config = _from_pretrained(AutoConfig, name, place)
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise EncoderError(
                f"{name}: has {config.num_hidden_layers} layers, expected at least {layers} (keep fewer)"
            )
        config.num_hidden_layers = layers
        if types := getattr(config, "layer_types", None):  # transformers 5 checks their number
            config.layer_types = types[:layers]
    for keys, rate in ((DROPOUT, dropout), (ATTENTION_DROPOUT, attention_dropout)):
        for key in keys:
            if rate is not None and hasattr(config, key):
                setattr(config, key, rate)
    encoder, info = _from_pretrained(
        AutoModel,
        name,
        place,
        config=config,
        # bert's eager attention is the fastest to train on a CPU, and ONNX export expects it
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
        **({"use_safetensors": True} if place.local else {}),
    )
    # transformers would initialise missing weights at random
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise EncoderError(
            f"{name}: cannot be loaded: {len(missing)} weights are missing, the first is {missing[0]} "
            "(name a folder that holds only an encoder)"
        )
    encoder.pooler = None
    return encoder, load_tokenizer(name, sha256)


def load_tokenizer(name: str, sha256: str | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer of an encoder; arguments and errors as in `load_encoder`."""
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, name, locate(name, sha256), use_fast=True)
    if not getattr(tokenizer, "is_fast", False):
        raise EncoderError(f"{name}: has no fast tokenizer (add its tokenizer.json)")
    return tokenizer


def _from_pretrained(auto: Any, name: str, place: Location, **settings: Any) -> Any:
    """What an auto class of transformers loads; raises EncoderError if it fails."""
    try:
        return auto.from_pretrained(place.path, revision=place.revision, **settings)
    except Exception as error:  # transformers, safetensors and the hub client have no common base
        reason = shorten(str(error), 200, placeholder=" ...")
        if place.local:
            raise EncoderError(f"{name}: cannot be loaded: {reason}") from None
        raise EncoderError(
            f"{name}: cannot be loaded from the hub: {reason} "
            "(check the name and the network, or name a local folder or package:NAME)"
        ) from None
