"""The weighted loss and the accuracy flags of a micro-batch, computed inside the engine's forward."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy
from torch import nn
from transformers import PreTrainedModel

from ds_train.model.rows import DocumentRows, RowReader
from ds_train.step.micro_batch import MicroBatch

_BLOCK_ELEMENTS = 1 << 19  # of logits in fp32 at once: 2 MB stay in a CPU's cache; GPUs have a kernel without blocks


class PackedLM(nn.Module):
    """A Hugging Face causal LM with the loss inside, so that ZeRO sees one forward per micro-batch.

    Args:
        one_document_a_row: give each document a row, as models want it that would let those of one row meet.
        no_decay: names of the causal LM's parameters without weight decay.
    """

    def __init__(
        self, causal_lm: PreTrainedModel, *, one_document_a_row: bool = False, no_decay: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.no_decay = {f"causal_lm.{name}" for name in no_decay}
        self.causal_lm = causal_lm
        self.one_document_a_row = one_document_a_row
        self._reader = RowReader(causal_lm)

    def rows(self, batch: MicroBatch) -> DocumentRows:
        """The batch's documents in the rows that the model reads."""
        rows = DocumentRows(batch.input_ids, batch.position_ids, batch.cu_seq_lens, batch.lengths)
        return rows.one_in_each() if self.one_document_a_row else rows

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The weighted loss of a micro-batch, in all and per source, and which scored documents are right.

        Only the needed positions get logits where documents share a row, in the model's dtype; the cross entropy is
        computed in fp32, in blocks.

        Returns:
            loss_sum: () float32, sum over targets of weight · negative log-likelihood.
            source_sums: (2,) float64 detached, the same for C4 and for synthetic targets.
            is_right: (D,) bool, every answer token of the scored document is the argmax (teacher forcing).
        """
        logits = self._reader.logits(self.rows(batch), batch.logit_positions)

        # Negative log-likelihoods (N,), and their sums per source.
        block_rows = max(1, _BLOCK_ELEMENTS // logits.shape[-1])
        nll = chunked_cross_entropy(logits, batch.targets, reduction="none", block_rows=block_rows)
        weighted = nll * batch.weights
        with torch.no_grad():
            exact = weighted.double()  # the sum of thousands in fp32 would differ by 1e-6 between layouts
            synthetic = torch.where(batch.is_synthetic, exact, 0.0).sum()  # a mask as an index would wait for a GPU
            source_sums = torch.stack([exact.sum() - synthetic, synthetic])

            # A scored document is right if none of its answer tokens is wrong.
            predicted = logits[batch.answer_targets].argmax(-1)
            wrong = (predicted != batch.targets[batch.answer_targets]).long()
            wrong_targets = torch.zeros_like(batch.document_example).index_add_(0, batch.answer_document, wrong)
        return weighted.sum(), source_sums.detach(), wrong_targets == 0


@dataclass
class AnswerCorrectness:
    """Accuracy flags of a rank's samples, 0 or 1: right by any scored answer, and right by the first."""

    by_any: torch.Tensor  # (num_examples,) uint8
    by_first: torch.Tensor  # (num_examples,) uint8

    @classmethod
    def none(cls, num_examples: int, device: torch.device) -> "AnswerCorrectness":
        return cls(*(torch.zeros(num_examples, dtype=torch.uint8, device=device) for _ in range(2)))

    def add(self, batch: MicroBatch, is_right: torch.Tensor) -> None:
        """Add the scored documents of one micro-batch."""
        for flags, right in ((self.by_any, is_right), (self.by_first, is_right & batch.document_is_first)):
            flags.scatter_reduce_(0, batch.document_example, right.to(torch.uint8), "amax")
