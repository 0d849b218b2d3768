"""Runs with compiled layers are those without, to the precision of fp32."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.launching import read_log, run_all

STEPS, STAGES = 3, (0, 1, 2)


def _run(scratch: Path, stage: int, *more: str) -> dict[str, Any]:
    flags = f"""--run_name stage{stage}{"".join(more)} --zero_stage {stage} --total_steps {STEPS} --eval_every 2
        --pptrain_checkpoint none --mixin_percent 0.3 --global_batch 8 --micro_batch 1 --lr 2e-3 --num_workers 0"""
    return {"phase": "pretrain", "argv": [*tiny.flags(scratch), *flags.split(), *more]}


@pytest.mark.slow
@pytest.mark.launch
def test_same_losses_at_every_stage(tiny_scratch: Path, tmp_path: Path) -> None:
    runs = [_run(tiny_scratch, stage, *more) for stage in STAGES for more in ([], ["--compile"])]
    output = run_all(runs, tmp_path, num_ranks=2)
    assert output.count("layers compiled") == len(STAGES) and "cannot compile" not in output
    for stage in STAGES:
        plain, compiled = (read_log(tiny_scratch / f"stage{stage}{more}") for more in ("", "--compile"))
        assert len(compiled) == STEPS
        for row, expected in zip(compiled, plain, strict=True):
            assert row["ledger"] == expected["ledger"]
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
