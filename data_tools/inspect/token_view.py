"""Shows samples as lines: a document's text, its tokens with their loss weights, its graph."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.inspect.drawing import as_dot, draw_problem
from data_tools.inspect.terminal import Cell, Terminal, visible
from data_tools.samples.documents import Document
from data_tools.search.prompts import parse_prompt

PARTS = ("text", "tokens", "graph")
_DIVIDER = "│"  # between tokens


@dataclass(frozen=True)
class View:
    """How samples are shown.

    Attributes:
        terminal: lays out the lines.
        tokenizer: the documents' tokenizer; None if no tokens are shown.
        parts: the parts to show, from `PARTS`.
        with_ids: whether to show each token's id after it.
        only_dot: show only graphs, for Graphviz.
    """

    terminal: Terminal
    tokenizer: TextTokenizer | None
    parts: Sequence[str]
    with_ids: bool = False
    only_dot: bool = False

    def example(
        self, title: str, facts: str, input_text: str, answers: Sequence[str], documents: Sequence[Document]
    ) -> Iterator[str]:
        """Yield the lines of a search problem: its text, its documents, its graph.

        Args:
            title, facts: its name, and its numbers.
            input_text: the prompt.
            answers: the right next words.
            documents: its documents that are trained or scored; none without a tokenizer.
        """
        if self.only_dot:
            yield as_dot(parse_prompt(input_text))
            return
        yield from self._heading(title, facts)
        documents = sorted(documents, key=lambda document: not document.weights.any())
        if "text" in self.parts:
            yield from self.terminal.wrapped(input_text)
            yield from self.terminal.wrapped(f"Right answers: {', '.join(answers)}", style="strong")
            if documents:
                yield from self._difference(documents[0], input_text, answers)
            yield ""
        if "tokens" in self.parts:
            for document in documents:
                yield from self._document(document)
        if "graph" in self.parts:
            yield from self._graph(input_text)
            yield ""

    def _graph(self, input_text: str) -> Iterator[str]:
        try:
            prompt = parse_prompt(input_text)
        except UserError:  # of another task
            yield from self.terminal.wrapped("This text is no search prompt, so no graph is drawn.", style="faint")
            return
        yield from draw_problem(prompt, self.terminal)

    def block(self, title: str, facts: str, document: Document) -> Iterator[str]:
        """Yield the lines of a packed block: its text with the ends of documents marked, and its tokens."""
        if self.only_dot:
            return
        yield from self._heading(title, facts)
        if "text" in self.parts:
            yield from self._parts_of(document.tokens)
        if "tokens" in self.parts:
            yield from self._document(document)

    def _heading(self, title: str, facts: str) -> Iterator[str]:
        yield self.terminal.rule(title)
        yield from self.terminal.wrapped(facts, style="faint")
        yield ""

    def _document(self, document: Document) -> Iterator[str]:
        """Yield the tokens of a document, each with its weight as a target; the first token is no target.

        A document that is scored but not trained shows only its answer: its prompt is also another document's.
        """
        num_targets, weights = len(document.weights), document.weights.tolist()
        is_trained = bool(document.weights.any())
        if is_trained:
            total = document.weights.sum(dtype=np.float64)
            text = f"{num_targets + 1} tokens, {num_targets} targets, sum of weights {total:.6g}"
            if document.answer_targets:
                text += f"; the last {document.answer_targets} are the answer, and scored"
        else:
            text = f"another right answer: the same prompt, then {document.answer_targets} tokens scored, not trained"
        yield from self.terminal.wrapped(text, style="heading")
        first = 0 if is_trained else num_targets + 1 - document.answer_targets
        yield from self._weighed(document.tokens[first:], [None, *weights][first:])
        yield ""

    def _difference(self, document: Document, input_text: str, answers: Sequence[str]) -> Iterator[str]:
        """Yield the decoded tokens if they differ from the original text."""
        assert self.tokenizer is not None
        decoded = self.tokenizer.decode(document.tokens.tolist())
        if decoded not in [f"{input_text} {answer}{self.tokenizer.eos_token}" for answer in answers]:
            yield from self.terminal.wrapped("Decoded from its tokens it is another text:", style="warning")
            yield from self.terminal.wrapped(decoded)

    def _weighed(self, tokens: np.ndarray, weights: Sequence[float | None]) -> Iterator[str]:
        """Yield a line for each run of tokens of one weight; a new one begins after each EOS, where a document ends."""
        assert self.tokenizer is not None
        labels = ["no target" if weight is None else f"weight {weight:.6g}" for weight in weights]
        ends_before = np.cumsum(tokens == self.tokenizer.eos_id) - (tokens == self.tokenizer.eos_id)
        texts, styles = self._texts_of(tokens), _styles(weights)
        cells = [Cell(text + _DIVIDER, style) for text, style in zip(texts, styles, strict=True)]
        margin = max(map(len, labels))
        shown = None
        for (label, _), run in groupby(zip(labels, ends_before, cells, strict=True), key=lambda item: item[:2]):
            lead = f"{'' if label == shown else label:>{margin}} {_DIVIDER}"
            yield from self.terminal.flow((cell for *_, cell in run), first=lead, rest=f"{'':>{margin}} {_DIVIDER}")
            shown = label

    def _texts_of(self, tokens: np.ndarray) -> list[str]:
        assert self.tokenizer is not None
        pieces = map(visible, self.tokenizer.pieces(tokens.tolist()))
        return [f"{piece}:{index}" if self.with_ids else piece for piece, index in zip(pieces, tokens, strict=True)]

    def _parts_of(self, tokens: np.ndarray) -> Iterator[str]:
        """The text of a block, document by document."""
        assert self.tokenizer is not None
        ends = (np.flatnonzero(tokens == self.tokenizer.eos_id) + 1).tolist()
        bounds = [0, *ends, *([] if ends and ends[-1] == len(tokens) else [len(tokens)])]
        for number, (start, end) in enumerate(pairwise(bounds), 1):
            rest = "" if end in ends else ", continues in the next block"
            yield self.terminal.styled(f"document {number}: tokens {start} … {end - 1}{rest}", "heading")
            yield from self.terminal.wrapped(self.tokenizer.decode(tokens[start:end].tolist()))
            yield ""


def _styles(weights: Sequence[float | None]) -> list[str]:
    """Styles by weight: faint if not trained; where weights differ, the greatest stand out."""
    different = {weight for weight in weights if weight is not None}
    greatest = max(different) if len(different) > 1 else None
    return ["faint" if not weight else "strong" if weight == greatest else "plain" for weight in weights]
