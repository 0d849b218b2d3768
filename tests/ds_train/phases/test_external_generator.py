"""A generator from outside, which reseeds global generators and keeps state, trains with exact order and resume."""

from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.comparing import comparable
from tests.support.launching import read_log, run_all

STEPS = 10


def _arguments(scratch: Path, name: str, *more: str) -> list[str]:
    return [
        *tiny.flags(scratch), *"--generator external_generator:StandInGenerator --global_batch 8 --lr 2e-3".split(),
        *f"--max_steps {STEPS} --curr_window 16 --curr_threshold 0.4 --curr_check_every 2".split(),
        "--run_name", f"external_{name}", *more,
    ]  # fmt: skip


@pytest.mark.launch
def test_external_generator_trains_with_exact_order_and_resume(tiny_scratch: Path, tmp_path: Path) -> None:
    one_rank = [
        # 0 workers are raised to 1: the generator must not run in the trainer, whose global generators it reseeds.
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "straight", "--micro_batch", "4", "--num_workers", "0")},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "resumed", "--micro_batch", "4", "--stop_step", "5"),
         "code": 86},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "resumed", "--micro_batch", "4")},
        {"phase": "pptrain", "argv": _arguments(tiny_scratch, "workers", "--micro_batch", "2", "--num_workers", "2")},
    ]  # fmt: skip
    run_all(one_rank, tmp_path, 1)
    run_all([{"phase": "pptrain", "argv": _arguments(tiny_scratch, "ranks", "--micro_batch", "2")}], tmp_path, 2)

    straight = read_log(tiny_scratch / "external_straight")
    assert straight[-1]["stage"] >= 2 and len(straight) == STEPS
    resumed = read_log(tiny_scratch / "external_resumed")
    assert comparable(straight) == comparable(resumed)
    for name in ("workers", "ranks"):
        rows = read_log(tiny_scratch / f"external_{name}")
        for column in ("ledger", "stage", "tokens"):
            assert [row[column] for row in rows] == [row[column] for row in straight]
