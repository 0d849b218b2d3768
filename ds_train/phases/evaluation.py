"""Held-out evaluation, sharded over ranks: accuracy and loss on graph search, loss on C4."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_tools.base.rng import permutation
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.documents import Document, encode_examples, example_documents
from data_tools.samples.readers import c4_document
from data_tools.search.splits import SplitRows
from ds_train.ranks.collectives import device_of, sum_over_ranks
from ds_train.ranks.world import World
from ds_train.step.losses import AnswerCorrectness
from ds_train.step.micro_batch import divide, idle_micro_batch

logger = logging.getLogger(__name__)

Forward = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # a PackedLM, or an engine around one
BeforeBatch = Callable[[int], None]  # called by all ranks before each of their batches, with how many; may raise


def do_nothing(_: int) -> None:
    """The `BeforeBatch` of an evaluation that nothing interrupts."""


@dataclass(frozen=True)
class HeldOut:
    """Tokenized examples of a split.

    Attributes:
        samples: the documents of each example, all answers scored.
        lookahead: (num_examples,) int64, -1 for other tasks than search.
        num_too_long: rows left out because they are longer than seq_len.
    """

    samples: list[list[Document]]
    lookahead: np.ndarray
    num_too_long: int

    @property
    def groups(self) -> list[tuple[int, np.ndarray]]:
        """Each known lookahead, and which examples have it: (num_examples,) bool."""
        known = np.unique(self.lookahead[self.lookahead >= 0]).tolist()
        return [(lookahead, self.lookahead == lookahead) for lookahead in known]


def heldout_examples(
    rows: SplitRows, tokenizer: TextTokenizer, *, seq_len: int, subset_size: int | None, seed: int
) -> HeldOut:
    """Tokenize a seeded subset of a split, without rows longer than seq_len.

    Args:
        subset_size: number of rows; None takes all.
    """
    if subset_size is not None and subset_size > len(rows):
        logger.warning("%s holds %d examples, not %d: all are used", rows.path, len(rows), subset_size)
    chosen = np.arange(len(rows))
    if subset_size is not None and subset_size < len(rows):
        chosen = np.sort(permutation(seed, "evaluation subset", len(rows))[:subset_size])
    picked = [rows[row] for row in chosen.tolist()]
    encoded = encode_examples(tokenizer, [r["input_text"] for r in picked], [r["output_texts"] for r in picked])
    fitting = [n for n, example in enumerate(encoded) if example.longest <= seq_len]
    return HeldOut(
        samples=[example_documents(encoded[n], loss="weighted", scored="any") for n in fitting],
        lookahead=np.array([-1 if (known := picked[n]["lookahead"]) is None else known for n in fitting], np.int64),
        num_too_long=len(picked) - len(fitting),
    )


@dataclass(frozen=True)
class HeldOutResult:
    """Results over all ranks.

    Attributes:
        loss: sum(w · nll) / sum(w), weighted as in pptrain.
        by_any, by_first: (num_examples,) bool, right by any valid answer and by the first.
    """

    loss: float | None
    by_any: np.ndarray
    by_first: np.ndarray

    @property
    def accuracy(self) -> float | None:
        return float(self.by_any.mean()) if len(self.by_any) else None


def evaluate_heldout(
    forward: Forward, heldout: HeldOut, *, num_tokens: int, world: World, before_batch: BeforeBatch = do_nothing
) -> HeldOutResult:
    """Teacher-forced accuracy and loss on graph-search examples, with ``num_tokens`` inputs a forward at most."""
    flags = AnswerCorrectness.none(len(heldout.samples), device_of(world))
    loss = _run(forward, heldout.samples, flags, num_tokens, world, before_batch)
    by_any, by_first = (
        sum_over_ranks(part.to(torch.uint8)).cpu().numpy().astype(bool) for part in (flags.by_any, flags.by_first)
    )
    return HeldOutResult(loss, by_any, by_first)


def heldout_columns(result: HeldOutResult, heldout: HeldOut) -> dict[str, Any]:
    """The columns of an evaluation row that both phases have."""
    return {
        "heldout_acc": result.accuracy,
        "heldout_loss": result.loss,
        "num_examples": len(result.by_any),
        "by_lookahead": [
            {"lookahead": n, "num_examples": int(has_it.sum()), "accuracy_any": float(result.by_any[has_it].mean())}
            for n, has_it in heldout.groups
        ],
    }


def evaluate_c4(
    forward: Forward,
    blocks: PackedBlocks,
    *,
    num_tokens: int,
    world: World,
    before_batch: BeforeBatch = do_nothing,
    is_masked: bool = False,
) -> float | None:
    """Mean negative log-likelihood per token of the pack's validation blocks; None where there are none.

    Args:
        is_masked: whether the documents in a block are isolated from each other.
    """
    eos_id = blocks.meta.eos_id if is_masked else None
    samples = [[c4_document(blocks.validation_block(n), eos_id)] for n in range(blocks.num_validation_blocks)]
    return _run(forward, samples, None, num_tokens, world, before_batch)


@torch.no_grad()
def _run(
    forward: Forward,
    samples: Sequence[list[Document]],
    flags: AnswerCorrectness | None,
    num_tokens: int,
    world: World,
    before_batch: BeforeBatch,
) -> float | None:
    """Sum(w · nll) / sum(w) over all samples. Ranks take micro-batches in turn, the same at any number of ranks."""
    device = device_of(world)
    model: Any = getattr(forward, "module", forward)  # of an engine
    parts = divide(samples, num_tokens, one_document_a_row=model.one_document_a_row)
    num_rounds = -(-len(parts) // world.size)

    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for first in range(0, len(parts), world.size):
        before_batch(num_rounds)
        mine = first + world.rank
        if mine >= len(parts):  # under ZeRO 3 a forward is collective
            forward(idle_micro_batch().to(device))
            continue
        batch = parts[mine].pack().to(device)
        _, source_sums, is_right = forward(batch)
        sums += torch.stack([source_sums.sum(), batch.weights.sum(dtype=torch.float64)])
        if flags is not None:
            flags.add(batch, is_right)
    total, weight = sum_over_ranks(sums).tolist()
    return total / weight if weight else None
