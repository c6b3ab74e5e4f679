"""Factorised word embeddings of a student in training: the teacher's table times a learnt projection.

A few thousand texts cover a fifth of the words that a student will encounter. In a free table, training
changes only the rows of these words. With a projection of the teacher's table (factorised embeddings, Lan et
al. 2020, arXiv:1909.11942, section 3.1, with the large factor given and fixed), all words change, similar
words alike, and a step updates 0.05 million weights instead of 4 million. After training the product is
stored as a plain table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FactorizedEmbedding(nn.Module):
    """Word embeddings that are the product of a fixed table and a learnt projection."""

    table: Tensor

    def __init__(self, table: Tensor, projection: Tensor) -> None:
        """Take a table `[pieces, teacher width]` and a projection `[teacher width, student width]`."""
        super().__init__()
        # not saved in checkpoints: the table belongs to the teacher and is fixed
        self.register_buffer("table", table, persistent=False)
        # C order: checkpoints store the moments of AdamW by memory position, and lstsq returns Fortran order
        self.projection = nn.Parameter(projection.clone(memory_format=torch.contiguous_format))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings `[..., student width]` of token ids `[...]`."""
        rows: Tensor = nn.functional.embedding(ids, self.table)
        return rows @ self.projection

    def folded(self) -> nn.Embedding:
        """The product as a plain embedding table `[pieces, student width]`."""
        embedding = nn.Embedding(len(self.table), self.projection.shape[1])
        embedding.weight = nn.Parameter((self.table @ self.projection).detach())
        return embedding


@torch.no_grad()
def factorize(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Replace the student's word embeddings, in place, by a projection of the teacher's.

    The projection approximates the student's table by least squares. The approximation is exact if the table
    was initialised from the teacher's.

    Args:
        student: Encoder with the vocabulary of the teacher.
        teacher: Encoder whose table is projected, after subtracting the mean of its rows.
    """
    words: Tensor = teacher.get_input_embeddings().weight.float().detach()
    table = words - words.mean(0)
    target = student.get_input_embeddings().weight.float()
    # gelsd: the table of a small vocabulary may be rank-deficient
    projection = torch.linalg.lstsq(table, target, driver="gelsd").solution
    student.set_input_embeddings(FactorizedEmbedding(table, projection))


def fold(student: PreTrainedModel) -> None:
    """Replace factorised word embeddings, in place, by a plain table; other encoders are unchanged."""
    embeddings = student.get_input_embeddings()
    if isinstance(embeddings, FactorizedEmbedding):
        student.set_input_embeddings(embeddings.folded())
