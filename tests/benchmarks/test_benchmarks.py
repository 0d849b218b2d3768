"""The reference does the same work as the trainers, and the cheap benchmarks run."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from tests.benchmarks import sampler_plan
from tests.benchmarks.measure import Row, compare_rows, run_reference
from tests.support import tiny
from tests.support.launching import REPOSITORY, environment, read_log, run_all

STEPS = "6"
PHASE_FLAGS = {
    "pptrain": ["--max_steps", STEPS, "--start_stage", "6"],
    "pretrain": ["--total_steps", STEPS, "--mixin_percent", "0.4"],
}
OURS_ONLY = {
    "pptrain": [],
    "pretrain": ["--pptrain_checkpoint", "none"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Row], list[Row]]]:
    """Phase → the rows of ours and of the reference, both in fp32."""
    scratch = tiny.build_tiny_scratch(tmp_path_factory.mktemp("scratch"))
    shared = f"""--model_name {scratch}/model --tokenizer {scratch}/tokenizer --seq_len {tiny.SEQ_LEN} --micro_batch 2
        --grad_accum 2 --lr 2e-2 --warmup_steps 4 --mixed_precision no""".split()
    own = ["--scratch_dir", str(scratch), "--log_every", "1", "--eval_subset_size", "4"]
    run_all(
        [{"phase": phase, "argv": [*own, *shared, *flags, *OURS_ONLY[phase]]} for phase, flags in PHASE_FLAGS.items()],
        scratch,
        num_ranks=1,
    )
    return {
        phase: (read_log(scratch / phase), run_reference(phase, scratch, [*shared, *flags]))
        for phase, flags in PHASE_FLAGS.items()
    }


@pytest.mark.launch
@pytest.mark.parametrize("phase", PHASE_FLAGS)
def test_reference_gives_the_trainers_losses(runs: dict[str, tuple[list[Row], list[Row]]], phase: str):
    ours, reference = runs[phase]
    for name in ("step", "lr", "tokens"):
        assert [row[name] for row in ours] == [row[name] for row in reference]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in reference], abs=1e-5)
    assert all(abs(after["loss"] - before["loss"]) > 1e-4 for before, after in pairwise(ours)), "no step changed much"


@pytest.mark.launch
def test_what_is_compared_holds_padding_and_both_sources(runs: dict[str, tuple[list[Row], list[Row]]]):
    for _, reference in runs.values():
        assert reference[-1]["positions"] > reference[-1]["tokens"]
    assert any(row["mixin_count"] for row in runs["pretrain"][0]) and any(
        row["c4_count"] for row in runs["pretrain"][0]
    )


@pytest.mark.launch
def test_runs_over_other_tokens_are_not_compared(runs: dict[str, tuple[list[Row], list[Row]]]):
    (ours, reference), (_, other) = runs.values()
    assert compare_rows(ours, reference, dropped=2).loss_difference < 1e-5
    with pytest.raises(UserError, match="different tokens"):
        compare_rows(ours, other, dropped=2)


def test_sampler_plan_runs(capsys: pytest.CaptureFixture[str]):
    sampler_plan.main(["--steps", "3"])
    assert "global batch 8,192" in capsys.readouterr().out


@pytest.mark.launch
def test_data_path_runs(gpt_neox_tokenizer_path: Path):
    """In a separate process, because it keeps to one core."""
    command = [sys.executable, "-m", "tests.benchmarks.data_path", "--stages", "1", "--batches", "1"]
    done = subprocess.run(
        [*command, "--mixin_size", "4"], cwd=REPOSITORY, env=environment(), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 17 of 64" in done.stdout
