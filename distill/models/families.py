"""A new network of the family that a recipe names; importing this module makes every family known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.heads import Head
from distill.models.base import TextClassifier
from distill.models.classifier import MultiHeadClassifier
from distill.models.packed import PackedClassifier
from distill.recipe.data_section import RecipeError
from distill.recipe.schema import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_network(settings: Training, encoder: PreTrainedModel, heads: Sequence[Head]) -> TextClassifier:
    """A network of an encoder with new heads.

    Raises:
        RecipeError: The family cannot read with this encoder.
    """
    if settings.network != "packed":
        return MultiHeadClassifier(encoder, heads, pooling=settings.pooling, dropout=settings.dropout)
    try:
        return PackedClassifier(encoder, heads, dropout=settings.dropout)
    except ValueError as error:
        raise RecipeError(str(error)) from None
