"""Problems as hard as a curriculum's stage, to evaluate on."""

from dataclasses import dataclass, field, replace

import numpy as np

from data_tools.samples.documents import example_documents
from data_tools.samples.readers import StreamReader
from data_tools.search.generator import ExampleGenerator
from ds_train.phases.evaluation import HeldOut
from ds_train.ranks.collectives import on_main
from ds_train.ranks.world import World

PURPOSE = "evaluation at a stage"  # of the stream of examples, which is another one than training's


@dataclass
class StageExamples:
    """Gives examples of any stage, the same on all ranks and at each call.

    Attributes:
        training: reads the training stream, which these examples are no part of.
        count: number of examples.
    """

    training: StreamReader
    count: int
    world: World
    _last: tuple[int, HeldOut] | None = field(default=None, init=False)

    def __call__(self, stage: int) -> HeldOut:
        """Collective. Examples as long as those that training takes, with all answers scored."""
        if self._last is None or self._last[0] != stage:
            self._last = stage, on_main(self.world, lambda: self._made(stage))
        return self._last[1]

    def _made(self, stage: int) -> HeldOut:
        trained = self.training.source
        sizes = {"max_input_size": trained.max_input_size, "max_lookahead": trained.max_lookahead}
        source = ExampleGenerator(trained.choice, **sizes, seed=trained.seed, purpose=PURPOSE)
        reader = replace(self.training, source=source)
        candidates = source.call_apart(reader.candidates, range(self.count), stage)
        return HeldOut(
            samples=[example_documents(each.encoded, loss="weighted", scored="any") for each in candidates],
            lookahead=np.full(self.count, -1, np.int64),
            num_too_long=0,
        )
