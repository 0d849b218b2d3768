"""How documents are laid into the rows that a causal LM reads: all end to end in one row, or one in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ds_train.model.attention import PACKED, DocumentLengths
from ds_train.model.flash import FLASH


@dataclass(frozen=True)
class DocumentRows:
    """Documents as rows.

    Attributes:
        input_ids: (rows, T) int64.
        position_ids: (rows, T) int64, restarting at each document.
        cu_seq_lens: (documents + 1,) int32, where documents begin when laid end to end, and the end of all.
        lengths: tokens of each document, on the host: a GPU is never asked for them.
        places: (tokens,) int64, where each token of the documents is in the rows laid end to end; None: in order.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seq_lens: torch.Tensor
    lengths: tuple[int, ...]
    places: torch.Tensor | None = None

    @classmethod
    def end_to_end(cls, documents: Sequence[np.ndarray]) -> "DocumentRows":
        """One row that holds the tokens of all documents."""
        lengths = tuple(len(tokens) for tokens in documents)
        return cls(
            input_ids=torch.from_numpy(np.concatenate(documents))[None],
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            cu_seq_lens=torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
            lengths=lengths,
        )

    @property
    def max_length(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    def one_in_each(self) -> "DocumentRows":
        """The same documents, each in a row of its own and padded at its end, where no token of a causal LM looks."""
        num_documents = len(self.lengths)
        if num_documents == self.input_ids.shape[0]:
            return self
        shape, num_tokens = (num_documents, self.max_length), self.input_ids.numel()
        numbers = torch.arange(num_documents, device=self.input_ids.device)
        document = numbers.repeat_interleave(self.cu_seq_lens.diff(), output_size=num_tokens)
        places = document * self.max_length + self.position_ids.flatten()
        padded = self.input_ids.new_zeros(shape).view(-1).index_copy(0, places, self.input_ids.flatten())
        positions = torch.arange(self.max_length, device=self.input_ids.device).expand(shape)
        return DocumentRows(padded.view(shape), positions, self.cu_seq_lens, self.lengths, places)

    def in_order(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, T, vocabulary) logits → (tokens, vocabulary) of the documents laid end to end, without the padding."""
        flat = logits.flatten(0, 1)
        return flat if self.places is None else flat[self.places]


class RowReader:
    """Calls a causal LM in the way that its class wants, without a cache and without an attention mask.

    Documents of one row are isolated by packed or flash attention, which get their bounds, or by transformers' own
    where position ids restart. Classes that know neither need a row for each document.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        self._causal_lm = causal_lm

    @cached_property
    def _accepted(self) -> set[str]:
        return set(signature(self._causal_lm.forward).parameters)

    def logits(self, rows: DocumentRows, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """(N, vocabulary) logits of the documents' tokens, laid end to end.

        Args:
            wanted: (N,) int64 which tokens; None: all.
        """
        inputs: dict[str, Any] = {"input_ids": rows.input_ids, "use_cache": False}
        if "position_ids" in self._accepted:
            inputs["position_ids"] = rows.position_ids
        inputs |= self._bounds(rows)
        is_one_row = rows.places is None and len(rows.input_ids) == 1
        if wanted is not None and is_one_row and "logits_to_keep" in self._accepted:
            return self._causal_lm(**inputs, logits_to_keep=wanted).logits.flatten(0, 1)
        logits = rows.in_order(self._causal_lm(**inputs).logits)
        return logits if wanted is None else logits[wanted]

    def _bounds(self, rows: DocumentRows) -> dict[str, Any]:
        """Where documents begin and end, by the keywords of the attention that wants to know."""
        attention, starts = self._causal_lm.config._attn_implementation, rows.cu_seq_lens
        if attention == PACKED:
            return {"cu_seq_lens_q": starts, "document_lengths": DocumentLengths(rows.lengths)}
        if attention in FLASH and rows.places is None:  # padded rows are as long as one another
            longest = rows.max_length
            return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
        return {}
