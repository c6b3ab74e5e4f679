"""Loading an encoder by name: the transformer without heads or pooler, and its fast tokeniser."""

from __future__ import annotations

import logging as python_logging
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from teachers.checkpoints import EncoderError, Location, locate


def load_encoder(
    name: str,
    *,
    sha256: str | None = None,
    layers: int | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
) -> tuple[Any, Any]:
    """An encoder (a transformers model with `.config`) in float32, and its tokenizer.

    Args:
        name: As `locate` takes it.
        sha256: Of the weights file.
        layers: Keep the first so many.
        dropout: Of hidden states; by default what the encoder's config says.
        attention_dropout: Of attention weights; likewise.

    Raises:
        EncoderError: It cannot be had, or has too few layers, or no fast tokenizer.
    """
    from transformers import AutoModel

    encoder, tokenizer, lacking = load_pretrained(AutoModel, name, sha256)
    if lacking:
        raise EncoderError(
            f"{name}: cannot be loaded: its weights lack {lacking[0]}, {len(lacking)} such in all "
            "(name a folder of an encoder alone)"
        )
    encoder.pooler = None
    set_dropout(encoder, dropout, attention_dropout)
    if layers is not None:
        keep_layers(encoder, layers, name)
    return encoder, tokenizer


def load_pretrained(auto: Any, name: str, sha256: str | None = None) -> tuple[Any, Any, list[str]]:
    """A model in float32, its fast tokenizer, and the names of the weights that its file lacks.

    transformers fills what a file lacks with random weights; a pooler is not missed.

    Args:
        auto: The class of transformers that makes the model, such as `AutoModel`.
        name: As `locate` takes it.
        sha256: Of the weights file.

    Raises:
        EncoderError: It cannot be had, or has no fast tokenizer.
    """
    from transformers.utils import logging

    place = locate(name, sha256)
    logging.set_verbosity_error()  # a pooler without use is not worth a page of warnings
    logging.disable_progress_bar()
    python_logging.getLogger("huggingface_hub").setLevel(python_logging.ERROR)  # of its retries
    try:
        model, read = auto.from_pretrained(
            place.path,
            revision=place.revision,
            # bert's eager attention trains fastest on a CPU and is what ONNX export reads
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            **({"use_safetensors": True} if place.local else {}),
        )
    except Exception as error:  # of transformers, of safetensors, of whatever fetches from the hub
        raise EncoderError(_why(name, place, error)) from None
    tokenizer = load_tokenizer(name, sha256)
    return model, tokenizer, sorted(key for key in read["missing_keys"] if not key.startswith("pooler."))


def load_tokenizer(name: str, sha256: str | None = None) -> Any:
    """The fast tokenizer of an encoder alone; arguments and errors as of `load_pretrained`."""
    from transformers import AutoTokenizer

    place = locate(name, sha256)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.path, revision=place.revision, use_fast=True)
    except Exception as error:
        raise EncoderError(_why(name, place, error)) from None
    if not getattr(tokenizer, "is_fast", False):
        raise EncoderError(f"{name}: has no fast tokenizer (save a tokenizer.json beside it)")
    return tokenizer


def keep_layers(encoder: Any, layers: int, name: str = "encoder") -> None:
    """Cut an encoder in place to its first layers."""
    stack = layer_stack(encoder)
    if layers > len(stack):
        raise EncoderError(f"{name}: has {len(stack)} layers, cannot keep {layers}")
    del stack[layers:]
    encoder.config.num_hidden_layers = layers


def layer_stack(encoder: Any) -> nn.ModuleList:
    """The list of an encoder's transformer layers, whatever its architecture calls it."""
    depth = encoder.config.num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise EncoderError(f"{type(encoder).__name__}: found no list of {depth} layers")


def set_dropout(encoder: Any, dropout: float | None, attention_dropout: float | None) -> None:
    """Set dropout in place, in the config and in the modules built from it."""
    rates = {
        **dict.fromkeys(("hidden_dropout_prob", "dropout"), dropout),
        **dict.fromkeys(("attention_probs_dropout_prob", "attention_dropout"), attention_dropout),
    }
    for key, rate in rates.items():
        if rate is not None and hasattr(encoder.config, key):
            setattr(encoder.config, key, rate)
    for path, module in encoder.named_modules():
        if not isinstance(module, nn.Dropout):
            continue
        # bert: attention.self.dropout; distilbert: attention.dropout; all others are of hidden states
        of_attention = path.endswith(("self.dropout", "attention.dropout"))
        rate = attention_dropout if of_attention else dropout
        if rate is not None:
            module.p = rate


def _why(name: str, place: Location, error: Exception) -> str:
    first = shorten(str(error), 200, placeholder=" ...")
    if place.local:
        return f"{name}: cannot be loaded: {first}"
    return (
        f"{name}: cannot be had from the hub: {first} "
        "(check the name and the network, or name a local folder or package:NAME)"
    )
