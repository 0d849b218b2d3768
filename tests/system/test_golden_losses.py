"""Loss curves kept in the repository: 20 steps of the tiny model in fp32, both phases, on one rank.

Renew them after a change that is meant to alter the trajectory:

    pytest tests/system/test_golden_losses.py --renew_golden
"""

import json
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.launching import read_log, run_all

GOLDEN = Path(__file__).with_name("golden_losses.json")
TOLERANCE = 1e-3
STEPS = 20
FLAGS = {
    "pptrain": f"--max_steps {STEPS} --curr_window 16 --curr_threshold 0.5 --curr_check_every 2",
    "pretrain": f"--total_steps {STEPS} --mixin_percent 0.3 --pptrain_checkpoint none",
}


@pytest.mark.launch
def test_losses_are_the_golden_ones(tiny_scratch: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    common = [
        *tiny.flags(tiny_scratch),
        *["--global_batch", "8", "--micro_batch", "4", "--lr", "2e-3", "--mixed_precision", "no"],
    ]
    runs = [
        {"phase": phase, "argv": [*common, *flags.split(), "--run_name", f"golden_{phase}"]}
        for phase, flags in FLAGS.items()
    ]
    run_all(runs, tmp_path, num_ranks=1)
    losses = {phase: [row["loss"] for row in read_log(tiny_scratch / f"golden_{phase}")] for phase in FLAGS}
    if request.config.getoption("--renew_golden"):
        rounded = {phase: [round(loss, 6) for loss in curve] for phase, curve in losses.items()}
        GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for phase, curve in losses.items():
        assert len(curve) == STEPS
        assert curve == pytest.approx(golden[phase], abs=TOLERANCE)
        assert curve[-1] < curve[0] - 0.2, "nothing is learnt"
