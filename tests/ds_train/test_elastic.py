"""A run goes on in another layout: same samples, same losses, in one command."""

import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from ds_train.elastic import _change
from tests.ds_train import tiny
from tests.ds_train.launching import launch, read_log, run_all

STEPS, STOP = 12, 6
FLAGS = f"--max_steps {STEPS} --curr_window 24 --curr_threshold 0.4 --curr_check_every 2 --global_batch 12 --lr 2e-3"
LOSS_TOLERANCE = {"no": 1e-5, "bf16": 1e-3}


@dataclass(frozen=True)
class Change:
    """Ranks and ZeRO stage before and after."""

    precision: str
    ranks: int
    zero: int
    new_ranks: int
    new_zero: int

    @property
    def name(self) -> str:
        return (
            f"elastic_{self.precision}_{self.ranks}ranks_zero{self.zero}_to_{self.new_ranks}ranks_zero{self.new_zero}"
        )


CHANGES = [
    Change("bf16", 1, 1, 2, 1), Change("bf16", 2, 1, 1, 1), Change("bf16", 4, 1, 3, 1), Change("bf16", 2, 1, 4, 1),
    Change("bf16", 4, 1, 1, 2), Change("bf16", 1, 2, 2, 1), Change("bf16", 2, 3, 1, 3), Change("bf16", 2, 1, 2, 2),
    Change("no", 2, 1, 1, 1), Change("no", 1, 1, 3, 2), Change("no", 2, 2, 1, 1), Change("no", 1, 3, 2, 3),
    Change("no", 2, 0, 1, 0), Change("bf16", 2, 1, 2, 3), Change("bf16", 1, 3, 2, 2), Change("no", 2, 2, 1, 0),
    Change("no", 1, 0, 2, 1), Change("no", 3, 3, 2, 0), Change("no", 2, 0, 3, 3), Change("no", 3, 1, 2, 3),
]  # fmt: skip


def _arguments(scratch: Path, change: Change, ranks: int, zero: int, *more: str) -> list[str]:
    micro_batch = 3 if ranks == 4 else 2  # another micro batch, too
    return [
        *tiny.flags(scratch), *FLAGS.split(), "--run_name", change.name, "--mixed_precision", change.precision,
        "--zero_stage", str(zero), "--micro_batch", str(micro_batch), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("elastic")
    before, after = defaultdict(list), defaultdict(list)
    for change in CHANGES:
        first = _arguments(tiny_scratch, change, change.ranks, change.zero, "--stop_step", str(STOP))
        before[change.ranks].append({"phase": "pptrain", "argv": first, "code": 86})
        then = _arguments(tiny_scratch, change, change.new_ranks, change.new_zero)
        after[change.new_ranks].append({"phase": "pptrain", "argv": then})
    for precision in LOSS_TOLERANCE:
        straight = _arguments(tiny_scratch, Change(precision, 1, 1, 1, 1), 1, 1)
        before[1].append({"phase": "pptrain", "argv": straight})
    for runs in (before, after):
        for ranks in sorted(runs):
            run_all(runs[ranks], directory, ranks)
    return tiny_scratch


@pytest.mark.launch
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name.removeprefix("elastic_"))
def test_goes_on_as_if_nothing_had_changed(scratch: Path, change: Change) -> None:
    rows = read_log(scratch / change.name)
    straight = read_log(scratch / Change(change.precision, 1, 1, 1, 1).name)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["ledger"] for row in rows] == [row["ledger"] for row in straight]
    assert [row["stage"] for row in rows] == [row["stage"] for row in straight]
    assert [row["lr"] for row in rows] == [row["lr"] for row in straight]
    assert (
        max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, straight, strict=True)) <= LOSS_TOLERANCE[change.precision]
    )
    assert not list((scratch / change.name / "checkpoints").glob("*/*universal*"))


def test_hashes_are_shown_in_short() -> None:
    assert _change("a" * 64, "b" * 64) == f"saved another one, with hash {'a' * 12} …, now {'b' * 12} …"


@pytest.mark.launch
class TestRefusals:
    def _stopped_run(self, scratch: Path, name: str) -> list[str]:
        change = Change("no", 1, 1, 1, 1)
        arguments = [*_arguments(scratch, change, 1, 1), "--run_name", name]
        done = launch("ds_train/pptrain.py", *arguments, "--stop_step", "2", num_ranks=1)
        assert done.returncode == 86, done.stdout[-3000:]
        told = "stopped after step 2, which is saved: --stop_step 2. Exit code 86; the same command without it, or with"
        assert told in done.stdout
        return arguments

    def test_what_cannot_be_made_right_is_refused_before_anything_is_touched(self, tiny_scratch: Path) -> None:
        arguments = self._stopped_run(tiny_scratch, "refused")
        run = tiny_scratch / "refused"
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
        refusals = {
            ("--zero_stage", "2", "--strict_layout"): "zero_stage 1 → 2",
            ("--seed", "7"): "seed: saved 1337, now 7",
            ("--global_batch", "24"): "global_batch: saved 12, now 24",
            ("--seq_len", "200"): "seq_len: saved 256, now 200",
            ("--lr", "1e-2"): "optimizer: lr saved 0.002, now 0.01; schedule: base_lr saved 0.002, now 0.01",
            ("--warmup_steps", "9", "--grad_clip", "0.5"): "saved 1.0, now 0.5; schedule: warmup_steps saved 4, now 9",
            ("--curr_threshold", "0.9"): "curr_threshold: saved 0.4, now 0.9",
            ("--mixed_precision", "bf16"): "precision: saved fp32, now bf16",
            ("--seed", "7", "--accept_change", "sead"): "--accept_change sead: no such setting",
        }
        for flags, message in refusals.items():
            done = launch("ds_train/pptrain.py", *arguments, *flags, num_ranks=1)
            assert done.returncode == 1 and message in done.stdout, done.stdout[-3000:]
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
        assert after == before

    def test_accepted_change_goes_on(self, tiny_scratch: Path) -> None:
        arguments = self._stopped_run(tiny_scratch, "accepted")
        flags = ["--global_batch", "6", "--max_steps", "4", "--accept_change", "global_batch"]
        done = launch("ds_train/pptrain.py", *arguments, *flags, num_ranks=1)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "--accept_change global_batch: saved 12, now 6" in done.stdout
        assert [row["step"] for row in read_log(tiny_scratch / "accepted")] == [1, 2, 3, 4]

    def test_checkpoint_of_another_run_is_refused(self, tiny_scratch: Path, tmp_path: Path) -> None:
        change = Change("no", 1, 1, 1, 1)
        own = [*_arguments(tiny_scratch, change, 1, 1), "--run_name", "own"]
        other = [*_arguments(tiny_scratch, change, 1, 1), "--run_name", "other", "--seed", "7"]
        stops = [{"phase": "pptrain", "argv": [*argv, "--stop_step", step], "code": 86}
                 for argv, step in ((own, "2"), (other, "3"))]  # fmt: skip
        run_all(stops, tmp_path, 1)
        foreign = tiny_scratch / "own/checkpoints/step_00000003"
        shutil.copytree(tiny_scratch / "other/checkpoints/step_00000003", foreign)
        refused = {
            "phase": "pptrain",
            "argv": own,
            "error": f"{foreign} belongs to another trajectory (seed: saved 7, now 1337)",
        }
        run_all([refused], tmp_path, 1)
        shutil.rmtree(foreign)
        run_all([{"phase": "pptrain", "argv": [*own, "--max_steps", "3"]}], tmp_path, 1)
        assert [row["step"] for row in read_log(tiny_scratch / "own")] == [1, 2, 3]
