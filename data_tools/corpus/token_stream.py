"""All documents as one row of tokens, each followed by EOS; workers tokenize ahead of the reader."""

import os
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from data_tools.base.processes import num_cores, worker_processes
from data_tools.corpus.stretches import Stretch, encode_stretch, is_long, join, stretches
from data_tools.corpus.tokenizer import TextTokenizer

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1_000_000  # bounds memory where documents are whole books

_Work = list[str] | Stretch  # what is tokenized at once: some documents, or a part of a long one
_Batch = tuple[np.ndarray, np.ndarray]  # tokens (n,) uint32 of some documents; where each ends in them, int64


@dataclass(frozen=True)
class TokenCursor:
    """A position in the row: the next token is number ``token`` of document ``document``, both counted from 0.

    Attributes:
        num_split: documents before it whose own text gave EOS, which some vocabularies hold as a word.
        num_untokenized: documents before it that gave nothing; see `stretches.join`.
    """

    document: int
    token: int
    num_split: int = 0
    num_untokenized: int = 0


class TokenStream:
    """Reads tokens from the row of all documents. It can start anywhere without tokenizing what comes before.

    Args:
        documents: all documents, from the first.
        tokenizer: gives ids without special tokens, and the EOS that ends each document.
        start: where to begin; documents before it are skipped without tokenizing them.
        batch_documents: number of documents tokenized together; the tokens do not depend on it.
        num_workers: number of processes that tokenize (default: one per core); the tokens do not depend on it.

    Raises:
        UserError: from `read`, a worker died.
    """

    def __init__(
        self,
        documents: Iterator[str],
        tokenizer: TextTokenizer,
        start: TokenCursor = TokenCursor(0, 0),
        batch_documents: int = _BATCH_DOCUMENTS,
        num_workers: int | None = None,
    ) -> None:
        remaining = islice(documents, start.document, None)
        self._batches = _encoded_ahead(remaining, tokenizer, batch_documents, num_workers or num_cores())
        self._eos_id = tokenizer.eos_id
        self._tokens = np.empty(0, np.uint32)
        self._ends = np.empty(0, np.int64)  # of the batch's documents within _tokens
        self._counts = np.array([[start.num_split, start.num_untokenized]])  # before each of them, and after the last
        self._position = start.token
        self._first_document = start.document

    @property
    def cursor(self) -> TokenCursor:
        """Position of the next token."""
        batch_document = int(np.searchsorted(self._ends, self._position, side="right"))
        begin = int(self._ends[batch_document - 1]) if batch_document else 0
        counts = self._counts[batch_document].tolist()
        return TokenCursor(self._first_document + batch_document, self._position - begin, *counts)

    def read(self, count: int) -> np.ndarray:
        """The next tokens, uint32: at most ``count``, and as many as are ready; none only at the end of the source."""
        while self._position >= len(self._tokens):
            batch = next(self._batches, None)
            if batch is None:
                return np.empty(0, np.uint32)
            # A start inside a document is beyond the empty first batch: keep the distance.
            self._position -= len(self._tokens)
            self._first_document += len(self._ends)
            self._tokens, self._ends = batch
            self._counts = self._counts[-1] + _counts(self._tokens == self._eos_id, self._ends)
        tokens = self._tokens[self._position : self._position + count]
        self._position += len(tokens)
        return tokens

    def finish_document(self) -> None:
        """Skip the rest of a document of which some tokens were read."""
        here = self.cursor
        if here.token:
            self._position = int(self._ends[here.document - self._first_document])


def _counts(is_eos: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(num_documents + 1, 2): how many documents before each, and before the end, have several EOS, and none."""
    num_eos = np.diff(np.searchsorted(np.flatnonzero(is_eos), ends), prepend=0)
    return np.vstack([[0, 0], np.cumsum(np.column_stack([num_eos > 1, num_eos == 0]), axis=0)])


def _encoded_ahead(
    documents: Iterator[str], tokenizer: TextTokenizer, batch_documents: int, num_workers: int
) -> Iterator[_Batch]:
    """The tokens of each batch, in order, two pieces of work for each worker ahead of the reader.

    Workers are processes with one thread each: together they outrun the tokenizer's own threads, which wait for one
    another at the end of every batch and for the interpreter to take their lists of ids.
    """
    works = _works(documents, batch_documents)
    first = list(islice(works, 2))
    if len(first) < 2:
        yield from (_encode(tokenizer, work) for work in first)  # done before a process has started
        return
    with worker_processes(num_workers, _keep_tokenizer, (tokenizer,)) as executor:
        results = _in_order(executor, chain(first, works), 2 * num_workers)
        for work, result in results:
            if not isinstance(work, Stretch):
                yield result
                continue
            tokens = join(chain([(work, result)], results), partial(encode_stretch, tokenizer))
            row = np.empty(0, np.uint32) if tokens is None else np.append(tokens, np.uint32(tokenizer.eos_id))
            yield row, np.array([len(row)])


def _in_order(executor: Executor, works: Iterator[_Work], num_ahead: int) -> Iterator[tuple[Any, Any]]:
    pending: deque[tuple[_Work, Future[Any]]] = deque()
    for work in works:
        pending.append((work, executor.submit(_encode_in_worker, work)))
        if len(pending) > num_ahead:
            done, future = pending.popleft()
            yield done, future.result()
    for done, future in pending:
        yield done, future.result()


def _encode(tokenizer: TextTokenizer, work: _Work) -> Any:
    """A batch of documents, or the tokens of a stretch with their places."""
    if isinstance(work, Stretch):
        return encode_stretch(tokenizer, work)
    tokens, ends = array("I"), []  # converts a list several times faster than numpy
    for ids in tokenizer.encode_batch(work):
        tokens.fromlist(ids)
        tokens.append(tokenizer.eos_id)
        ends.append(len(tokens))
    return np.asarray(tokens, np.uint32), np.array(ends, np.int64)


_worker_tokenizer: TextTokenizer


def _keep_tokenizer(tokenizer: TextTokenizer) -> None:
    """In a worker, once."""
    global _worker_tokenizer
    # A pool of one thread, which is a tenth faster than no pool.
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"}
    _worker_tokenizer = tokenizer


def _encode_in_worker(work: _Work) -> Any:
    return _encode(_worker_tokenizer, work)


def _works(documents: Iterator[str], batch_documents: int) -> Iterator[_Work]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        if is_long(text):
            if batch:
                yield batch
                batch, characters = [], 0
            yield from stretches(text)
            continue
        batch.append(text)
        characters += len(text)
        if len(batch) == batch_documents or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
