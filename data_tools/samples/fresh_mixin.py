"""Synthetic blocks of fresh examples, as many as a run reads: each a pure function of its number."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np

from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.documents import example_documents
from data_tools.samples.readers import Candidate, Sample, StreamReader
from data_tools.search.generator import ExampleGenerator
from data_tools.search.splits import Splits

_PURPOSE = "pretrain/mixin examples"  # of the stream of examples, which is another one than pptrain's
_GROUP = 16  # blocks that are filled together
_STRIDE = 1 << 20  # from a group's first example to the next group's: more than a group can hold
_DRAWN = 32  # examples that are tokenized together
_MEASURED = 16 * _GROUP  # blocks whose mean fill stands for that of all


@dataclass(frozen=True)
class FreshMixinReader:
    """Reads synthetic block ``index`` of an endless series; no example occurs twice but by chance.

    The blocks of a group take examples in the order in which these are drawn, each into the fullest block with room for
    it. The first one without room ends the group and is left out: one in a whole group, so lengths are hardly biased.

    Attributes:
        stream: makes examples; the next attempt replaces one that is reserved or longer than seq_len.
        stage: how hard they are.
        mode: ``packed``, or ``single``: block ``index`` is example ``index``.
    """

    stream: StreamReader
    stage: int
    mode: str

    def read(self, indices: Sequence[int], stage: int) -> list[Sample]:
        return [self._sample(examples) for examples in self.examples_of(indices)]

    def examples_of(self, blocks: Sequence[int]) -> list[list[Candidate]]:
        """The examples in each block."""
        if self.mode == "single":
            return [[candidate] for candidate in self.stream.candidates(blocks, self.stage)]
        groups = {number: self._group(number) for number in {block // _GROUP for block in blocks}}
        return [groups[block // _GROUP][block % _GROUP] for block in blocks]

    def fill(self) -> float:
        """Mean real targets of a block / seq_len, measured over the first blocks."""
        blocks = self.stream.source.call_apart(self.examples_of, range(_MEASURED))
        return sum(_num_targets(each) for block in blocks for each in block) / (_MEASURED * self.stream.seq_len)

    def _group(self, number: int) -> list[list[Candidate]]:
        blocks: list[list[Candidate]] = [[] for _ in range(_GROUP)]
        rooms = np.full(_GROUP, self.stream.seq_len)
        for first in count(number * _STRIDE, _DRAWN):
            for candidate in self.stream.candidates(range(first, first + _DRAWN), self.stage):
                left = rooms - _num_targets(candidate)
                if (left < 0).all():
                    return blocks
                fullest = int(np.where(left < 0, self.stream.seq_len, left).argmin())
                rooms[fullest] = left[fullest]
                blocks[fullest].append(candidate)
        raise AssertionError("count() is endless")

    def _sample(self, examples: list[Candidate]) -> Sample:
        loss, seq_len = self.stream.loss, self.stream.seq_len
        documents = [example_documents(each.encoded, loss=loss, seq_len=seq_len) for each in examples]
        overflows = [each.overflows for each in examples]
        return Sample([*chain.from_iterable(documents)], [*chain.from_iterable(overflows)])


def fresh_mixin(
    splits: Splits, tokenizer: TextTokenizer, *, seq_len: int, seed: int, mode: str, loss: str
) -> FreshMixinReader:
    """Blocks of examples like those of mixin.jsonl, none of whose prompts is in eval, test or mixin.

    Args:
        seed: the run's.
        mode, loss: ``--mixin_pack`` and ``--mixin_loss``.

    Raises:
        UserError: the splits' generator is not found, or a prompt of the splits occurs twice.
    """
    sizes = {"max_input_size": splits.meta.max_input_size, "max_lookahead": splits.meta.max_lookahead}
    source = ExampleGenerator(splits.meta.generator, **sizes, seed=seed, purpose=_PURPOSE)
    stream = StreamReader(source, tokenizer, seq_len, splits.reserved_digests(), seed, "first", "any", loss)
    return FreshMixinReader(stream, splits.meta.stage, mode)


def _num_targets(candidate: Candidate) -> int:
    """Of the document that is trained on."""
    return len(candidate.encoded.prompt) + len(candidate.encoded.answers[0]) - 1
