"""Whether the documents of a row leave one another alone, found by trying: transformers promises it for few classes.

ALiBi, recurrent and convolutional layers and masks of a model's own run over the bounds of documents. A small model of
the same kind shows it before anything is built, in fp32 and with weights that let tokens matter.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PretrainedConfig

from data_tools.base.errors import UserError, first_line
from data_tools.base.rng import CounterStream
from ds_train.model.attention import attention_candidates
from ds_train.model.flash import FLASH
from ds_train.model.rows import DocumentRows, RowReader
from ds_train.model.small_config import VOCAB_SIZE, one_thread, small_model

logger = logging.getLogger(__name__)

# Logits may differ by this share of their spread. Rounding gives 1e-6 in fp32, and some 1e-2 where each of a few dozen
# operations in a row keeps 8 bits; a document that is seen gives 0.1 and more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2**-4, torch.float16: 2**-4}
_LENGTHS = {"first": 37, "other first": 37, "second": 26}  # tokens
_PREFIX = 13

LogitsOf = Callable[[Sequence[np.ndarray]], list[torch.Tensor]]  # tokens of documents → (tokens, vocabulary) of each


@dataclass(frozen=True)
class Influence:
    """What the logits of a document depend on that they must not, as shares of their spread.

    Attributes:
        of_others: other documents of the micro-batch.
        of_later: later tokens of the document itself.
    """

    of_others: float
    of_later: float


@torch.no_grad()
def measure_influence(logits_of: LogitsOf, vocab_size: int) -> Influence:
    """Compare the logits of short documents in company with those that they have alone.

    In half precision the token in the middle counts instead of the worst one: a rounding can send a single token to
    another expert.

    Args:
        logits_of: runs documents as one micro-batch.
        vocab_size: their tokens are smaller.
    """
    documents = {name: _tokens(name, length, vocab_size) for name, length in _LENGTHS.items()}
    alone = {name: logits_of([tokens])[0] for name, tokens in documents.items()}
    differences = []
    for first in ("first", "other first"):
        pair = logits_of([documents[first], documents["second"]])
        differences += [_difference(pair[0], alone[first]), _difference(pair[1], alone["second"])]
    (prefix,) = logits_of([documents["second"][:_PREFIX]])
    return Influence(max(differences), _difference(prefix, alone["second"][:_PREFIX]))


def _tokens(name: str, length: int, vocab_size: int) -> np.ndarray:
    draws = CounterStream(0, f"isolation/{name}")
    return 1 + np.array(draws.below_many(vocab_size - 2, length), np.int64)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    is_half = found.dtype != torch.float32
    found, expected = found.double(), expected.double()
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    by_token = (found - expected).norm(dim=-1) / spread.clamp_min(1e-30)
    return (by_token.median() if is_half else by_token.max()).item()


@torch.no_grad()
def is_random(logits_of: LogitsOf) -> bool:
    """Whether a model in training mode draws random numbers that move its logits."""
    tokens, found = _tokens("second", _LENGTHS["second"], VOCAB_SIZE), []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.append(logits_of([tokens])[0])
    return _difference(*found) > TOLERANCE[torch.float32]


def settle_rows(config: PretrainedConfig, attention: str, *, keep_dropout: bool) -> bool:
    """Choose how a model of this configuration reads documents, by a small model; sets its attention implementation.

    Where no small model can be run, the model itself has to show it, see `step/probe.py`.

    Args:
        config: prepared; changed in place.
        attention: an implementation, or ``auto``: the first of packed, sdpa and eager that isolates documents in a row.
        keep_dropout: random numbers may move the logits.

    Returns:
        whether each document needs a row of its own.

    Raises:
        UserError: no way is right.
    """
    if attention in FLASH:  # a small model on a CPU cannot run it: it treats rows as the best of the others does
        one_document_a_row = settle_rows(config, "auto", keep_dropout=keep_dropout)
        config._attn_implementation = attention
        return one_document_a_row
    candidates = attention_candidates(config) if attention == "auto" else [attention]
    padded, problem = None, ""
    for candidate in candidates:
        config._attn_implementation = candidate
        try:
            in_a_row, in_rows, draws = _try_small_model(config)
        except Exception as error:  # whatever a class that was made for other inputs raises
            problem = problem or first_line(error)
            continue
        if draws and not keep_dropout:
            raise UserError(
                f"a model of type {config.model_type} draws random numbers in training: its losses would depend on the "
                "layout. --keep_dropout accepts that."
            )
        refuse_dependence(config, in_rows, TOLERANCE[torch.float32])
        if in_a_row.of_others <= TOLERANCE[torch.float32]:
            return False
        padded = padded or candidate
    config._attn_implementation = padded or candidates[0]
    if padded is None:
        logger.warning("no small %s can be run (%s); the model itself will be tried", config.model_type, problem)
    return padded is not None


def refuse_dependence(config: PretrainedConfig, in_rows: Influence, tolerance: float) -> None:
    """Raise a ``UserError`` for a model whose documents are not independent even in rows of their own."""
    if in_rows.of_later > tolerance:
        cure = ' ("is_decoder": true in its config.json may make it so)' if not getattr(config, "is_decoder", 1) else ""
        raise UserError(
            f"a model of type {config.model_type} is not causal: its logits change with later tokens{cure}. Give a "
            "causal language model."
        )
    if in_rows.of_others > tolerance:
        raise UserError(
            f"a model of type {config.model_type} lets documents influence one another even in rows of their own: its "
            "losses would depend on the micro batch. Give another model."
        )


@one_thread()
def _try_small_model(config: PretrainedConfig) -> tuple[Influence, Influence, bool]:
    """Influences among documents in one row and in rows of their own, and whether chance plays a part in training."""
    model = small_model(config).eval()
    in_a_row, in_rows = (partial(_logits_of, RowReader(model), one) for one in (False, True))
    influences = measure_influence(in_a_row, VOCAB_SIZE), measure_influence(in_rows, VOCAB_SIZE)
    model.train()
    return *influences, is_random(in_rows)


def _logits_of(reader: RowReader, one_in_each: bool, documents: Sequence[np.ndarray]) -> list[torch.Tensor]:
    rows = DocumentRows.end_to_end(documents)
    logits = reader.logits(rows.one_in_each() if one_in_each else rows)
    return list(logits.split([len(tokens) for tokens in documents]))
