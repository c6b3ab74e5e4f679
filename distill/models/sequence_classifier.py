"""Classifiers of other origin as teachers: sequence classifiers of Hugging Face, networks of earlier runs.

Each head has members of its own, whose labels are put into the head's order. The logits of several members
are the mean of their calibrated log-probabilities, or of their calibrated logits for a multi_label head.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.data.labels import label_key
from distill.data.tokens import TextTokenizer
from distill.heads import Head, columns
from distill.models.base import Array, Batch, TextClassifier, TextEncoder, on_device
from distill.models.checkpoints import is_network, network_identity
from distill.models.packed import PackedClassifier
from distill.models.predict import predict_logits
from distill.models.saved_networks import SavedNetworkError, load_classifier, saved_heads
from distill.recipe.data_section import RecipeError
from distill.recipe.merge_section import MergedModel
from distill.storage import json_digest
from teachers.checkpoints import EncoderError, network_folder
from teachers.hf_classifier import MAX_TOKENS, Outputs, classifier_outputs, load_hf_classifier
from teachers.label_map import LabelMapError, mapped_labels, match_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOLERANCE = 1e-3  # share of the largest logit


class SequenceClassifier(TextClassifier):
    """A sequence classifier of Hugging Face as a network of one head, which is not trained further."""

    family = "sequence_classifier"

    def __init__(self, model: PreTrainedModel, heads: Sequence[Head]) -> None:
        super().__init__()
        self.model, self.heads, self.config = model, tuple(heads), model.config

    @property
    def encoder(self) -> PreTrainedModel:
        """The network without its classification layers."""
        return self.model.base_model

    def forward(self, batch: Batch) -> Tensor:
        """The logits `[batch, labels]`, in the order of the classifier's own labels."""
        logits: Tensor = self.model(**batch).logits
        return logits

    def text_encoder(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> TextTokenizer:
        """A tokenizer that truncates texts to as many tokens as the model reads, `max_length` at most."""
        return TextTokenizer(tokenizer, self.usable_length(max_length))

    def settings(self) -> dict[str, Any]:
        """None: it is saved nowhere."""
        return {}

    def head_parameters(self, head: Head) -> Iterable[nn.Parameter]:
        """The parameters of the classification layers."""
        own = {id(parameter) for parameter in self.encoder.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]


@dataclass(frozen=True)
class _Loaded:
    """A network of a name, the first head that it teaches, and its identity with the tokens that it reads."""

    name: str
    head: str
    network: TextClassifier
    tokenizer: PreTrainedTokenizerFast
    encode: TextEncoder
    digest: str

    @property
    def kind(self) -> str:
        """`sequence classifier`, or `network` of an earlier run."""
        return "sequence classifier" if isinstance(self.network, SequenceClassifier) else "network"

    def places(self, head: Head, labels: Mapping[str, str | None] | None) -> Array:
        """The columns of the network's logits that are the labels of a head, in the head's order.

        Raises:
            RecipeError: The network has no such head, or one of another kind.
            LabelMapError: Its labels are others.
        """
        single = isinstance(self.network, SequenceClassifier)
        own = {one.name: (one, part) for one, part in columns(self.network.heads)}
        if single:
            own = {head.name: next(iter(own.values()))}
        if head.name not in own:
            raise RecipeError(f"has no head {head.name!r}, its heads are {', '.join(own)} (name another)")
        theirs, part = own[head.name]
        if theirs.kind != head.kind:
            raise RecipeError(
                f"is {theirs.kind}, expected {head.kind} (set heads.{head.name}.kind: {theirs.kind}"
                + (", or problem_type in its config.json)" if single else ")")
            )
        places = match_labels(theirs.labels, head.labels, labels, label_key)
        return np.asarray(part.start + np.array(places))


class MergedTeacher:
    """Classifiers that each teach a head or several (`teachers.base.Teacher`).

    Attributes:
        heads: The heads that are taught.
        labels: The labels of each.
        temperatures: Of the classifiers of each head; their logits are divided by it.
    """

    def __init__(
        self,
        merge: Mapping[str, Sequence[MergedModel]],
        heads: Sequence[Head],
        accelerator: Accelerator | None,
        temperatures: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Load the classifiers; one that teaches several heads is loaded once.

        Args:
            merge: The classifiers of each head.
            heads: Of the data; those that `merge` lacks are left out.
            accelerator: The device and precision to compute with; None for `try_out` alone.
            temperatures: By default 1.

        Raises:
            RecipeError: A classifier cannot be loaded, or has other labels or another kind than its head.
        """
        self.accelerator, self._merge = accelerator, merge
        self.heads = tuple(head for head in heads if head.name in merge)
        self.labels: Mapping[str, tuple[str, ...]] = {head.name: head.labels for head in self.heads}
        self.temperatures = {head.name: [1.0] * len(merge[head.name]) for head in self.heads}
        self.temperatures |= {name: [*own] for name, own in (temperatures or {}).items()}
        self._loaded: dict[tuple[str, int | None], _Loaded] = {}
        self._members: dict[str, list[tuple[_Loaded, Array]]] = {}
        for head in self.heads:
            members = self._members[head.name] = []
            for one in merge[head.name]:
                key = (one.model, one.max_length)
                with _named(head.name, one):
                    if key not in self._loaded:
                        taught = [
                            h
                            for h in self.heads
                            if any((m.model, m.max_length) == key for m in merge[h.name])
                        ]
                        self._loaded[key] = _load(one, taught)
                    members.append((self._loaded[key], self._loaded[key].places(head, one.labels)))

    @property
    def digest(self) -> str:
        """Changes with the classifiers, the tokens that they read, the order of labels, the temperatures."""
        heads = []
        for head in self.heads:
            members = [[loaded.digest, places.tolist()] for loaded, places in self._members[head.name]]
            heads.append([head.name, head.labels, members, list(self.temperatures[head.name])])
        return json_digest(heads)

    def logits(self, texts: Sequence[str]) -> dict[str, Array]:
        """The logits of each head, float32 `[texts, labels]`."""
        return {
            head.name: combined(head, parts, self.temperatures[head.name])
            for head, parts in zip(self.heads, self.member_logits(texts).values(), strict=True)
        }

    def try_out(self, texts: Sequence[str]) -> None:
        """Compare each classifier of Hugging Face with what it computes of its own tokenizer's batch.

        Raises:
            RecipeError: It computes something else, as of token types or of padding on the left.
        """
        for loaded in self._loaded.values():
            network = loaded.network
            if not isinstance(network, SequenceClassifier):
                continue
            settings = {"padding": True, "truncation": True, "max_length": loaded.encode.max_length}
            with torch.inference_mode():
                inputs = loaded.tokenizer([*texts], return_tensors="pt", **settings)
                read = inspect.signature(network.model.forward).parameters
                own = network.model(**{key: x for key, x in inputs.items() if key in read}).logits
                batch = loaded.encode(texts).batch(np.arange(len(texts)))
                found = network(on_device(batch, torch.device("cpu")))
            if not torch.isfinite(own).all() or (own - found).abs().max() > TOLERANCE * own.abs().max():
                raise RecipeError(
                    f"teacher.merge.{loaded.head}: {loaded.name}: gives other logits for padded texts, or "
                    "reads more than token ids and their mask (name another)"
                )

    def member_logits(self, texts: Sequence[str]) -> dict[str, list[Array]]:
        """The logits of each classifier of each head, before its temperature."""
        assert self.accelerator is not None
        found = {}
        for one in self._loaded.values():
            logits = predict_logits(one.network, one.encode(texts), self.accelerator)
            if not np.isfinite(logits).all():  # NaN is for texts that a teacher does not know
                raise RecipeError(
                    f"teacher.merge.{one.head}: {one.name}: gives logits that are not finite (set "
                    "precision: no, or name another)"
                )
            found[id(one)] = logits
        return {
            name: [found[id(loaded)][:, places] for loaded, places in members]
            for name, members in self._members.items()
        }

    def about(self) -> dict[str, list[dict[str, Any]]]:
        """The name, kind, digest and temperature of the classifiers of each head."""
        return {
            head.name: [
                {"name": one.model, "kind": loaded.kind, "digest": loaded.digest, "temperature": temperature}
                for one, (loaded, _), temperature in zip(
                    self._merge[head.name],
                    self._members[head.name],
                    self.temperatures[head.name],
                    strict=True,
                )
            ]
            for head in self.heads
        }


def combined(head: Head, logits: Sequence[Array], temperatures: Sequence[float]) -> Array:
    """One classifier's logits as they are; the mean of several, calibrated by their temperatures.

    The mean is that of log-probabilities, or for a multi_label head of logits: the geometric mean of
    probabilities, or of odds.
    """
    if len(logits) == 1:
        return logits[0]
    scaled = [part / temperature for part, temperature in zip(logits, temperatures, strict=True)]
    if head.kind == "single_label":
        scaled = [part - np.logaddexp.reduce(part, -1, keepdims=True) for part in scaled]
    return np.asarray(np.mean(scaled, 0, dtype=np.float32))


def _load(one: MergedModel, heads: Sequence[Head]) -> _Loaded:
    """A classifier that teaches these heads."""
    network: TextClassifier
    if is_network(one.model):
        identity = network_identity(one.model)
        network, tokenizer = load_classifier(network_folder(one.model))
        length = min(MAX_TOKENS, tokenizer.model_max_length)
        if isinstance(network, PackedClassifier):
            network = network.with_heads(heads)
    else:
        found = load_hf_classifier(one.model)
        kind, labels = found.outputs
        network, tokenizer = SequenceClassifier(found.model, [Head("labels", kind, labels)]), found.tokenizer
        length, identity = found.max_length, found.digest
    encode = network.text_encoder(tokenizer, one.max_length or length)
    return _Loaded(one.model, heads[0].name, network, tokenizer, encode, f"{identity}/{encode.max_length}")


def own_outputs(head: str, one: MergedModel) -> Outputs:
    """The kind and the labels of a classifier of a head, as its `labels` name them, without loading weights.

    Raises:
        RecipeError: The classifier cannot be read, or has no such head.
    """
    with _named(head, one):
        if is_network(one.model):
            heads = {own.name: own for own in saved_heads(network_folder(one.model))}
            if head not in heads:
                raise RecipeError(f"has no head {head!r}, its heads are {', '.join(heads)} (name another)")
            kind: Any = heads[head].kind
            return Outputs(kind, tuple(mapped_labels(heads[head].labels, one.labels)))
        found = classifier_outputs(one.model)
        return Outputs(found.kind, tuple(mapped_labels(found.labels, one.labels)))


@contextmanager
def _named(head: str, one: MergedModel) -> Iterator[None]:
    """Name the head and the classifier in front of an error."""
    try:
        yield
    except (EncoderError, SavedNetworkError) as error:
        raise RecipeError(f"teacher.merge.{head}: {error}") from None
    except (LabelMapError, RecipeError, ValueError) as error:
        raise RecipeError(f"teacher.merge.{head}: {one.model}: {error}") from None
