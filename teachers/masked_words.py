"""Words in place of others, as a masked-language model predicts them from what stands around.

Jiao et al. 2020 (TinyBERT, arXiv:1909.10351, algorithm 1) mask one word at a time, and only words of one
piece. Here all gaps of a text are filled in one pass, as such models are trained, and whatever stood in them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from teachers.checkpoints import EncoderError
from teachers.encoders import load_pretrained
from teachers.neighbours import whole_words

BATCH = 64  # texts


class MaskedWords:
    """A masked-language model by name, and the words it may fill in: the whole ones of its vocabulary."""

    def __init__(
        self,
        name: str,
        *,
        sha256: str | None = None,
        top: int = 15,
        max_length: int = 128,
        device: torch.device | str = "cpu",
    ) -> None:
        """Load a model.

        Args:
            name: As `locate` takes it.
            sha256: Of the weights file.
            top: The number of best predictions that are drawn from.
            max_length: Tokens read of a text, or as many as the model has positions for.
            device: To compute on.

        Raises:
            EncoderError: It cannot be had, or is no masked-language model with all of its weights.
        """
        from transformers import AutoModelForMaskedLM

        model, self.tokenizer, lacking = load_pretrained(AutoModelForMaskedLM, name, sha256)
        if lacking:
            raise EncoderError(
                f"{name}: is no masked-language model: its weights lack {lacking[0]}, {len(lacking)} such in "
                "all (name one that was trained to fill masks and kept its head, as bert-base-uncased)"
            )
        if self.tokenizer.mask_token is None:
            raise EncoderError(f"{name}: its tokenizer has no mask token (name a masked-language model)")
        self.model, self.device, self.top = model.to(device).eval(), device, top
        # two fewer than there are: roberta counts them from behind the padding
        positions = getattr(model.config, "max_position_embeddings", max_length + 2) - 2
        self.max_length = min(max_length, positions)
        self.tokenizer.truncation_side = self.tokenizer.padding_side = "right"
        special = set(self.tokenizer.all_special_ids)
        ids = [number for number in whole_words(self.tokenizer).values() if number not in special]
        self._ids = torch.tensor(ids, dtype=torch.long, device=device)
        self._names = [self.tokenizer.decode([number]).strip() for number in ids]
        # the product with the vocabulary, the widest by far, is of the gaps alone
        self._gaps = torch.zeros(0)
        if (head := model.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(lambda _, given: (given[0][self._gaps],))

    @torch.inference_mode()
    def fill(self, texts: Sequence[tuple[Sequence[str], Sequence[str], int]]) -> list[list[str]]:
        """The words for the gaps of each text, drawn evenly among the `top` best that did not stand there.

        Evenly, as in the paper: by their probabilities most copies would take the same few words. Gaps
        that the model does not read, behind `max_length`, keep their words, and so do those of a text
        that holds the mask token itself.

        Args:
            texts: Of each: what stands before, between and behind its gaps; the words that stood in
                them, one fewer; the seed of the draw.
        """
        mask = str(self.tokenizer.mask_token)
        filled = [list(words) for _, words, _ in texts]
        order = [i for i, (between, _, _) in enumerate(texts) if not any(mask in part for part in between)]
        order.sort(key=lambda i: sum(map(len, texts[i][0])))  # like lengths together
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            best = self._best([mask.join(texts[i][0]) for i in rows])
            for i, found in zip(rows, best, strict=True):
                chance = random.Random(texts[i][2])
                for gap, names in enumerate(found):
                    stood = filled[i][gap].lower()
                    others = [name for name in names if name.lower() != stood][: self.top]
                    filled[i][gap] = chance.choice(others) if others else filled[i][gap]
        return filled

    def _best(self, masked: list[str]) -> list[list[list[str]]]:
        """The best words for each mask of each text, one more than are drawn from, the best first."""
        read: Any = self.tokenizer(
            masked, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        ).to(self.device)
        self._gaps = read["input_ids"] == self.tokenizer.mask_token_id
        logits = self.model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).logits
        if logits.ndim == 3:  # of a model that has no layer for that product
            logits = logits[self._gaps]
        count = min(self.top + 1, len(self._names))
        best = iter(logits[:, self._ids].topk(count).indices.tolist())
        names = self._names
        return [[[names[n] for n in next(best)] for _ in range(gaps)] for gaps in self._gaps.sum(1).tolist()]
