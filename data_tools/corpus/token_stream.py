"""Documents as one endless row of tokens, each document followed by EOS, tokenized ahead of the reader."""

import os
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from tokenizers import Tokenizer

from data_tools.base.processes import num_cores, worker_processes
from data_tools.corpus.tokenizer import TextTokenizer

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 2_000_000  # bounds memory where documents are whole books

_Batch = tuple[np.ndarray, np.ndarray]  # tokens (n,) uint32 of some documents; where each ends in them, int64


@dataclass(frozen=True)
class TokenCursor:
    """A position in the row: the next token is number ``token`` of document ``document``, both counted from 0."""

    document: int
    token: int


class TokenStream:
    """Reads tokens from the row of all documents, starting anywhere without tokenizing what lies before.

    Args:
        documents: all documents, from the first.
        tokenizer: gives ids without special tokens, and the EOS that ends each document.
        start: where to begin; documents before it are passed over unread by the tokenizer.
        batch_documents: tokenized together; the tokens do not depend on it.
        num_workers: processes that tokenize (default: one for each core); the tokens do not depend on it.

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
        self._tokens = np.empty(0, np.uint32)
        self._ends = np.empty(0, np.int64)  # of the batch's documents within _tokens
        self._position = start.token
        self._first_document = start.document

    @property
    def cursor(self) -> TokenCursor:
        """Position of the next token."""
        batch_document = int(np.searchsorted(self._ends, self._position, side="right"))
        begin = int(self._ends[batch_document - 1]) if batch_document else 0
        return TokenCursor(self._first_document + batch_document, self._position - begin)

    def read(self, count: int) -> np.ndarray:
        """The next tokens, (count,) or fewer uint32: as many as are at hand, none only at the end of the source."""
        while self._position >= len(self._tokens):
            batch = next(self._batches, None)
            if batch is None:
                return np.empty(0, np.uint32)
            # A start inside a document lies beyond the empty first batch: keep the distance.
            self._position -= len(self._tokens)
            self._first_document += len(self._ends)
            self._tokens, self._ends = batch
        tokens = self._tokens[self._position : self._position + count]
        self._position += len(tokens)
        return tokens

    def finish_document(self) -> None:
        """Pass over the rest of a document of which some tokens were read."""
        here = self.cursor
        if here.token:
            self._position = int(self._ends[here.document - self._first_document])


def _encoded_ahead(
    documents: Iterator[str], tokenizer: TextTokenizer, batch_documents: int, num_workers: int
) -> Iterator[_Batch]:
    """The tokens of each batch, in order, two batches for each worker ahead of the reader.

    Workers are processes with one thread each: together they outrun the tokenizer's own threads, which wait for one
    another at the end of every batch and for the interpreter to take their lists of ids.
    """
    batches = _batches(documents, batch_documents)
    first = list(islice(batches, 2))
    if len(first) < 2:
        yield from (_encode(tokenizer, texts) for texts in first)  # done before a process has started
        return
    with worker_processes(num_workers, _open_tokenizer, (tokenizer.serialized, tokenizer.eos_token)) as executor:
        pending: deque[Future[_Batch]] = deque()
        for texts in chain(first, batches):
            pending.append(executor.submit(_encode_in_worker, texts))
            if len(pending) > 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encode(tokenizer: TextTokenizer, texts: list[str]) -> _Batch:
    tokens, ends = array("I"), []  # takes over a list several times faster than numpy does
    for ids in tokenizer.encode_batch(texts):
        tokens.fromlist(ids)
        tokens.append(tokenizer.eos_id)
        ends.append(len(tokens))
    return np.asarray(tokens, np.uint32), np.array(ends, np.int64)


_worker_tokenizer: TextTokenizer


def _open_tokenizer(serialized: str, eos_token: str) -> None:
    """In a worker, once."""
    global _worker_tokenizer
    # A pool of one thread, which is a tenth faster than no pool.
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"}
    _worker_tokenizer = TextTokenizer(Tokenizer.from_str(serialized), eos_token, "of the pack")


def _encode_in_worker(texts: list[str]) -> _Batch:
    return _encode(_worker_tokenizer, texts)


def _batches(documents: Iterator[str], batch_documents: int) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if len(batch) == batch_documents or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
