"""What pretrain records of a step."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from data_tools.samples.samplers import SampleKind
from ds_train.phases import pretrain
from ds_train.phases.text_packs import TextPacks


def test_a_pack_is_read_again_from_its_second_reading_on(caplog: pytest.LogCaptureFixture) -> None:
    """Of 16 blocks, 8 a step: the second step ends the first reading, the third begins another."""
    phase = SimpleNamespace(pack_check=None, text=TextPacks({"c4": SimpleNamespace(num_blocks=16)}))
    result = SimpleNamespace(plan=SimpleNamespace(sources=np.full(8, SampleKind.C4)))
    for step in range(1, 6):
        pretrain.Pretrain.record(phase, SimpleNamespace(step=step, c4_block_idx=8 * step, seed=1), result)
    found = re.findall(r"step (\d): the pack has been read (\S+ times?), and", caplog.text)
    assert found == [("3", "1 time"), ("5", "2 times")]
