"""Branches of a run at a constant rate: its state and data continue, the rate decays, and nothing else differs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.save import read_state
from ds_train.checkpoints.state import InitialWeights
from ds_train.checkpoints.weights import Weights, record_of
from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import GROUPS
from ds_train.phases import pretrain
from tests.support import tiny
from tests.support.comparing import assert_same_checkpoint, comparable
from tests.support.launching import read_log
from tests.support.paths import REPOSITORY
from tests.support.process_group import own_process_group

POINT, DECAY, LENGTH = 8, 6, 12  # where it branches, for how many steps, and the length of the run at a constant rate


def train(scratch: Path, name: str, *more: str) -> int:
    """A run of one rank in this process."""
    flags = "--pptrain_checkpoint none --global_batch 4 --micro_batch 2 --num_workers 0 --save_every 1 --keep_last 0"
    config = REPOSITORY / "ds_configs" / "pptrain.json"  # its rate is constant after the warm-up
    given = [*tiny.flags(scratch), *flags.split(), "--deepspeed_config", str(config), "--run_name", name, *more]
    with own_process_group():
        return pretrain.main(given)


def step(scratch: Path, name: str, number: int) -> Path:
    return scratch / name / "checkpoints" / f"step_{number:08d}"


def branch_flags(scratch: Path, name: str = "constant", number: int = POINT) -> list[str]:
    return ["--branch_from", str(step(scratch, name, number)), "--decay_steps", str(DECAY)]


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path) -> Iterator[Path]:
    """Holds a run at a constant rate, and a branch of it."""
    assert train(tiny_scratch, "constant", "--total_steps", str(LENGTH), "--eval_at", str(POINT)) == 0
    assert train(tiny_scratch, "branch", *branch_flags(tiny_scratch)) == 0
    yield tiny_scratch
    for name in ("constant", "branch"):
        shutil.rmtree(tiny_scratch / name)


def test_a_branch_continues_samples_and_counts_and_decays(scratch: Path) -> None:
    constant, branch = (read_log(scratch / name) for name in ("constant", "branch"))
    assert [row["step"] for row in branch] == list(range(POINT + 1, POINT + DECAY + 1))
    for row, other in zip(branch, constant[POINT:], strict=False):
        assert (row["ledger"], row["tokens"], row["pflops"]) == (other["ledger"], other["tokens"], other["pflops"])
    rate = constant[-1]["lr"]
    assert [row["lr"] for row in branch] == pytest.approx([rate * (1 - k / DECAY) for k in range(1, DECAY + 1)])
    assert branch[0]["loss"] == constant[POINT]["loss"], "the same weights; the update came after it"
    assert branch[1]["loss"] != constant[POINT + 1]["loss"]
    at_point = [
        comparable([r for r in read_log(scratch / n, "eval") if r["step"] == POINT]) for n in ("constant", "branch")
    ]
    assert at_point[0] == at_point[1] and at_point[0]


def test_a_run_that_ended_is_continued_too(scratch: Path) -> None:
    assert train(scratch, "late", *branch_flags(scratch, number=LENGTH)) == 0
    assert [row["step"] for row in read_log(scratch / "late")] == list(range(LENGTH + 1, LENGTH + DECAY + 1))
    shutil.rmtree(scratch / "late")


def test_a_branch_records_where_it_comes_from(scratch: Path) -> None:
    (_, flags, *_), _ = parse_flags(
        *GROUPS["pretrain"], description="", argv=["--config", str(scratch / "branch" / "run.yaml")]
    )
    assert (flags.branch_from, flags.total_steps) == (str(step(scratch, "constant", POINT)), POINT + DECAY)
    origin = record_of(Weights(step(scratch, "constant", POINT), True))
    assert (origin.path, origin.run, origin.step) == (flags.branch_from, str(scratch / "constant"), POINT)
    for number in (POINT + 1, POINT + DECAY):
        state = read_state(step(scratch, "branch", number))
        assert state.branched_from == origin and state.initial_weights == InitialWeights()
    (launch,) = map(json.loads, (scratch / "branch" / "launches.jsonl").read_text().splitlines())
    assert (launch["branched_from"]["hash"], launch["step"]) == (origin.hash, POINT)
    assert read_state(step(scratch, "constant", LENGTH)).branched_from is None


def test_a_resume_in_the_middle_is_exact_and_needs_its_origin_no_more(scratch: Path) -> None:
    origin, away = step(scratch, "constant", POINT), scratch / "constant" / "moved"
    try:
        assert train(scratch, "stopped", *branch_flags(scratch), "--stop_step", str(POINT + 3)) == 86
        origin.rename(away)
        assert train(scratch, "stopped", *branch_flags(scratch)) == 0
        assert comparable(read_log(scratch / "stopped")) == comparable(read_log(scratch / "branch"))
        assert comparable(read_log(scratch / "stopped", "eval")) == comparable(read_log(scratch / "branch", "eval"))
        assert_same_checkpoint(scratch / "stopped", scratch / "branch", POINT + DECAY)
        with pytest.raises(UserError, match=r"--branch_from .*step_00000008: it does not exist"):
            train(scratch, "stopped", *branch_flags(scratch), "--resume", "none")
    finally:
        away.rename(origin)
        shutil.rmtree(scratch / "stopped")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lr", "1e-4"], r"learning rate 0.000125 at step 1 .* has 2.5e-05 there .* before it decays"),
        (["--mixin_percent", "0.5"], r"another trajectory \(mixin_percent: saved 0.02, now 0.5\)"),
        (["--seed", "2"], r"another trajectory \(seed: saved 1337, now 2\)"),
        (["--run_name", "constant"], r"--branch_from .* belongs to the run in .*constant; give another --run_name"),
        (["--mixin_schedule", "linear", "--mixin_end", "0.1"], r"a branch needs a constant share"),
        (["--branch_from", "/nowhere/step_00000004"], r"--branch_from /nowhere/step_00000004: it does not exist"),
        (["--branch_from", "/nowhere"], r"/nowhere is not a step directory"),
        (["--total_steps", "13"], r"--total_steps 13: a branch of step 8 with --decay_steps 6 ends at step 14; leave"),
        (["--total-steps=13"], r"--total_steps 13: a branch"),
    ],
)
def test_what_is_no_branch_is_refused_and_nothing_is_written(scratch: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(scratch, "refused_branch", *branch_flags(scratch), *more)
    assert not (scratch / "refused_branch").exists()


def test_a_decay_has_no_branches(scratch: Path) -> None:
    with pytest.raises(UserError, match=r"its run had the learning rate .* at step 9 .* until step 8, then linear"):
        train(scratch, "refused_branch", *branch_flags(scratch, "branch", POINT + 2))
    with pytest.raises(UserError, match=r"--branch_from needs --decay_steps"):
        train(scratch, "refused_branch", *branch_flags(scratch)[:2])
