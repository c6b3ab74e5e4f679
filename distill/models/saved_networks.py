"""Networks on disk, as a stage leaves them: weights, encoder configuration, heads and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from distill.heads import Head
from distill.models import classifier  # noqa: F401  makes the family `heads` known to `TextClassifier.families`
from distill.models.base import TextClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def save_classifier(network: TextClassifier, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a network and its tokenizer into an existing folder."""
    network.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
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
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        content = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise SavedNetworkError(f"{folder / 'heads.json'}: is not JSON (run its recipe again)") from None
    families = TextClassifier.families
    if (family := content.get("family")) not in families:
        raise SavedNetworkError(
            f"{folder / 'heads.json'}: family {family!r}, expected one of {sorted(families)} (the network "
            "is of another version of tinyheads: run its recipe again)"
        )
    config = AutoConfig.from_pretrained(folder)
    encoder = AutoModel.from_config(config, attn_implementation="eager")
    encoder.pooler = None
    heads = tuple(Head.from_json(head) for head in content["heads"])
    network = families[family](encoder, heads, **content["settings"])
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval(), AutoTokenizer.from_pretrained(folder)
