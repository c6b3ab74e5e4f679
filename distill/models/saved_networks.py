"""Networks on disk, as a stage leaves them: weights, encoder configuration, heads and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from distill.heads import Head
from distill.models import families  # noqa: F401  makes them known to `TextClassifier.families`
from distill.models.base import TextClassifier
from distill.models.classifier import MultiHeadClassifier
from teachers.encoders import remove_pooler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def save_classifier(network: TextClassifier, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a network and its tokenizer into an existing folder."""
    save_settings(network, tokenizer, folder)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_settings(network: TextClassifier, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write all of a network but its weights, and its tokenizer, into an existing folder."""
    network.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    content = {
        "family": network.family,
        "settings": network.settings(),
        "heads": [head.to_json() for head in network.heads],
    }
    (folder / "heads.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


class SavedNetworkError(Exception):
    """A folder whose network cannot be loaded."""

    exit_code = 2


def load_classifier(folder: Path) -> tuple[TextClassifier, PreTrainedTokenizerFast]:
    """The network, in eval mode, and the tokenizer that `save_classifier` wrote.

    Raises:
        SavedNetworkError: The file of heads is incomplete, or of another version.
    """
    network, tokenizer = load_settings(folder)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network, tokenizer


def take_heads(network: TextClassifier, folder: Path) -> set[str]:
    """Give the heads of a network, in place, the weights that a saved network has for their labels.

    Args:
        network: Its encoder is that of the saved network. Only networks of the family `heads` with the same
            pooling give and take.
        folder: Of the saved network, whose heads are known by name and kind and their labels by name.

    Returns:
        The heads that have the same labels there, in the same order.

    Raises:
        SavedNetworkError: As in `load_classifier`.
    """
    source, _ = load_classifier(folder)
    if not (isinstance(network, MultiHeadClassifier) and isinstance(source, MultiHeadClassifier)):
        return set()
    if source.pooling != network.pooling:
        return set()
    known, taken = {(head.name, head.kind): head for head in source.heads}, set()
    for head in network.heads:
        if (theirs := known.get((head.name, head.kind))) is None:
            continue
        rows = [row for row, label in enumerate(head.labels) if label in theirs.labels]
        others = [theirs.labels.index(head.labels[row]) for row in rows]
        parameters = network.head_parameters(head), source.head_parameters(theirs)
        with torch.no_grad():
            for own, other in zip(*parameters, strict=True):
                own[rows] = other[others]
        if head.labels == theirs.labels:
            taken.add(head.name)
    return taken


def load_settings(folder: Path) -> tuple[TextClassifier, PreTrainedTokenizerFast]:
    """A network with new weights, in eval mode, and the tokenizer that `save_settings` wrote.

    Raises:
        SavedNetworkError: As in `load_classifier`.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    content = _content(folder)
    known = TextClassifier.families
    if (family := content.get("family")) not in known:
        raise SavedNetworkError(
            f"{folder / 'heads.json'}: family {family!r}, expected one of {sorted(known)} (the network "
            "is of another version of tinyheads: run its recipe again)"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    encoder = AutoModel.from_config(config, attn_implementation="eager", trust_remote_code=False)
    remove_pooler(encoder)
    heads = tuple(Head.from_json(head) for head in content["heads"])
    network = known[family](encoder, heads, **content["settings"])
    return network.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def saved_heads(folder: Path) -> list[Head]:
    """The heads of a network, without loading it; raises SavedNetworkError as `load_classifier`."""
    return [Head.from_json(head) for head in _content(folder)["heads"]]


def _content(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "heads.json").read_text(encoding="utf-8")))
    except ValueError:
        raise SavedNetworkError(f"{folder / 'heads.json'}: is not JSON (run its recipe again)") from None
