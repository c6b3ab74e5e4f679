"""The texts on which the export measures the ranges of activations."""

import datasets
import numpy as np

from distill.data.tokens import Tokens
from distill.stages.export_onnx import MEASURED, TOKENS, measured_texts, unpadded


def test_texts_are_measured_from_all_parts_of_a_data_set() -> None:
    texts = datasets.Dataset.from_dict({"text": [str(i) for i in range(5 * MEASURED)]})
    found = [int(text) for text in measured_texts(texts)]
    assert len(found) == MEASURED and found[0] == 0 and found[-1] == 5 * MEASURED - 1
    assert np.diff(found).max() <= 6
    assert measured_texts(texts.select(range(3))) == ["0", "1", "2"]


def test_long_texts_are_measured_few_at_a_time() -> None:
    """32 texts of 512 tokens would take gigabytes."""
    lengths = np.array([0] + [7] * 400 + [512] * 9 + [5000])
    texts = Tokens(np.ones(lengths.sum(), np.int32), np.concatenate([[0], lengths.cumsum()]), 0)
    sizes = [batch["input_ids"].shape for batch in unpadded(texts)]
    assert all(rows * length <= TOKENS or rows == 1 for rows, length in sizes)
    assert sum(rows for rows, _ in sizes) == len(lengths) - 1  # an empty text has nothing to measure
    assert all(batch["attention_mask"].all() for batch in unpadded(texts))
