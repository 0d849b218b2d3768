"""Problems as hard as a stage: the same at each call, none of training's, and evaluated in a run of both phases."""

import numpy as np

from ds_train.phases.stage_examples import StageExamples
from ds_train.ranks.world import World
from tests.support.tiny_models import stream_reader

COUNT = 40


def _prompts(samples) -> list[bytes]:
    return [documents[0].tokens.tobytes() for documents in samples]


def test_examples_are_as_hard_as_the_stage_and_none_of_training() -> None:
    reader = stream_reader()
    examples = StageExamples(reader, COUNT, World(0, 0, 1))
    easy, hard = examples(1), examples(8)
    assert len(easy.samples) == len(hard.samples) == COUNT and examples(8) is hard, "made once a stage"
    lengths = [np.mean([len(documents[0].tokens) for documents in found.samples]) for found in (easy, hard)]
    assert lengths[1] > 2 * lengths[0]
    again = StageExamples(reader, COUNT, World(0, 0, 1))(8)
    assert _prompts(again.samples) == _prompts(hard.samples)
    trained = _prompts(sample.documents for sample in reader.read(range(COUNT), 8))
    assert not set(trained) & set(_prompts(hard.samples))
