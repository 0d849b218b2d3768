"""At an unchanged layout, resume is bitwise equal to never having stopped."""

from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.comparing import assert_same_checkpoint, comparable
from tests.support.launching import read_log, run_all

# Promotions fall on different steps; 5 is in the middle of a stage, 6 has the rule applied.
STOPS = {"pptrain": (1, 5, 6, 11), "pretrain": (5, 11)}
PRECISION = {"pptrain": "no", "pretrain": "bf16"}  # which does not depend on the phase


def _arguments(scratch: Path, phase: str, ranks: int, name: str, *more: str) -> list[str]:
    return [
        *tiny.flags(scratch), *tiny.SHORT_FLAGS[phase], "--micro_batch", "2",
        "--num_workers", "2", "--mixed_precision", PRECISION[phase],
        "--run_name", f"resume_{phase}_{ranks}_{name}", *more,
    ]  # fmt: skip


@pytest.mark.launch
@pytest.mark.parametrize("ranks", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted(tiny_scratch: Path, tmp_path: Path, ranks: int) -> None:
    runs = []
    for phase in tiny.SHORT_FLAGS:
        runs.append({"phase": phase, "argv": _arguments(tiny_scratch, phase, ranks, "straight")})
        for stop in STOPS[phase]:
            stopped = _arguments(tiny_scratch, phase, ranks, f"stop{stop}", "--stop_step", str(stop))
            runs.append({"phase": phase, "argv": stopped, "code": 86})
            runs.append({"phase": phase, "argv": stopped[:-2]})
    run_all(runs, tmp_path, ranks)
    for phase in tiny.SHORT_FLAGS:
        straight = tiny_scratch / f"resume_{phase}_{ranks}_straight"
        for stop in STOPS[phase]:
            resumed = tiny_scratch / f"resume_{phase}_{ranks}_stop{stop}"
            for log in ("train", "eval"):
                assert comparable(read_log(resumed, log)) == comparable(read_log(straight, log))
            assert_same_checkpoint(resumed, straight, tiny.SHORT_STEPS)
