"""Documents as one endless row of tokens, each document followed by EOS, tokenized ahead of the reader."""

from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from data_tools.tokenizer import TextTokenizer

_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 2_000_000  # bounds memory where documents are whole books


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
    """

    def __init__(
        self,
        documents: Iterator[str],
        tokenizer: TextTokenizer,
        start: TokenCursor = TokenCursor(0, 0),
        batch_documents: int = _BATCH_DOCUMENTS,
    ) -> None:
        self._batches = _encoded_ahead(islice(documents, start.document, None), tokenizer, batch_documents)
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
    documents: Iterator[str], tokenizer: TextTokenizer, batch_documents: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens (n,) uint32, ends (documents,) int64) of each batch, in order, up to three batches ahead of the reader.

    The tokenizer works on all cores and without the interpreter lock. Of two batches in its hands, the second keeps
    the cores busy while the first one's ids become an array; a third waits, so none pauses until the source is read.
    """

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens, ends = array("I"), []  # takes over a list several times faster than numpy does
        for ids in tokenizer.encode_batch(texts):
            tokens.fromlist(ids)
            tokens.append(tokenizer.eos_id)
            ends.append(len(tokens))
        return np.asarray(tokens, np.uint32), np.array(ends, np.int64)

    with ThreadPoolExecutor(max_workers=2) as executor:
        pending: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
        for texts in _batches(documents, batch_documents):
            pending.append(executor.submit(encode, texts))
            if len(pending) == 3:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


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
