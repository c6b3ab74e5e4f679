"""A student's word embeddings while it learns: the teacher's table times a learnt projection.

A few thousand texts hold a fifth of the words that a student will meet. A free table moves the rows of
the words it saw and leaves the others where they were, so that what is learnt of one word helps no other.
As one projection of the teacher's table (factorised embeddings, Lan et al. 2020, arXiv:1909.11942,
section 3.1, with the large factor given and fixed) every word moves with those that are like it, and a
step has 0.05 million weights to move instead of 4 million. Folded at the end, it is a table like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FactorizedEmbedding(nn.Module):
    """Rows of a fixed table times a learnt projection."""

    table: Tensor

    def __init__(self, table: Tensor, projection: Tensor) -> None:
        """Take a table `[pieces, teacher width]` and a projection `[teacher width, student width]`."""
        super().__init__()
        # not in checkpoints: it is the teacher's, and does not change
        self.register_buffer("table", table, persistent=False)
        # in C order, as a checkpoint holds AdamW's moments, which it reads by place: lstsq gives columns
        self.projection = nn.Parameter(projection.clone(memory_format=torch.contiguous_format))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings `[..., student width]` of token ids `[...]`."""
        rows: Tensor = nn.functional.embedding(ids, self.table)
        return rows @ self.projection

    def folded(self) -> nn.Embedding:
        """The product as a plain table `[pieces, student width]`."""
        embedding = nn.Embedding(len(self.table), self.projection.shape[1])
        embedding.weight = nn.Parameter((self.table @ self.projection).detach())
        return embedding


@torch.no_grad()
def factorize(student: Any, teacher: Any) -> None:
    """Put the student's word embeddings, in place, as a projection of the teacher's.

    The projection is the one that comes closest to the student's table by least squares, which is that
    table itself where it was started from the teacher's.

    Args:
        student: Encoder of the same vocabulary.
        teacher: Encoder whose table is projected, less the mean of its rows.
    """
    words: Tensor = teacher.get_input_embeddings().weight.float().detach()
    table = words - words.mean(0)
    mine = student.get_input_embeddings().weight.float()
    # gelsd: the rows of a small vocabulary may span less than their width
    projection = torch.linalg.lstsq(table, mine, driver="gelsd").solution
    student.set_input_embeddings(FactorizedEmbedding(table, projection))


def fold(student: Any) -> None:
    """Make the word embeddings of an encoder a plain table again, in place; any other encoder stays."""
    embeddings = student.get_input_embeddings()
    if isinstance(embeddings, FactorizedEmbedding):
        student.set_input_embeddings(embeddings.folded())
