"""A run continues in another layout: same samples, same losses, in one command."""

import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.resume import ONE_A_ROW, _change, adapted_state
from ds_train.checkpoints.state import TrainState
from tests.support import tiny
from tests.support.launching import launch, read_log, run_all
from tests.support.selection import selected, slow

STEPS, STOP = 12, 6
FLAGS = f"--max_steps {STEPS} --curr_window 24 --curr_threshold 0.4 --curr_check_every 2 --global_batch 12"
LEARNING_RATE = {"no": "2e-3", "bf16": "5e-4"}  # the tolerance of bf16 is stated for the shipped rate
LOSS_TOLERANCE = {"no": 1e-5, "bf16": 1e-3}


@dataclass(frozen=True)
class Saved:
    """How a run was trained until it was stopped; several changes continue from one."""

    precision: str
    ranks: int
    zero: int
    model: str = "model"  # or "tied": one matrix for input and output embeddings

    @property
    def name(self) -> str:
        return f"elastic_{self.precision}_{self.ranks}ranks_zero{self.zero}_{self.model}"

    @property
    def straight(self) -> "Saved":
        """How its model is trained without a stop."""
        return replace(self, ranks=1, zero=1)


@dataclass(frozen=True)
class Change:
    """A stopped run, and the ranks and ZeRO stage that it continues with."""

    saved: Saved
    ranks: int
    zero: int

    @property
    def name(self) -> str:
        return f"{self.saved.name}_to_{self.ranks}ranks_zero{self.zero}"


def _changes(precision: str, saved: tuple[int, int], *new: tuple[int, int], model: str = "model") -> list[Change]:
    return [Change(Saved(precision, *saved, model), *ranks_and_zero) for ranks_and_zero in new]


# (ranks, ZeRO stage) before, and after; what tensors become in any of these changes is compared in test_restore.py.
# Some CPUs emulate bf16: it is here for each kind of file that DeepSpeed writes.
CHANGES = [
    *_changes("bf16", (2, 1), (1, 2), (2, 3)),
    *_changes("bf16", (1, 3), (2, 2)),
    *_changes("no", (2, 2), (1, 1), (1, 0)),
    *_changes("no", (1, 1), (3, 2)),
    *_changes("no", (2, 0), (3, 3)),
    *_changes("no", (2, 3), (1, 3), (2, 1), model="tied"),
    *_changes("no", (1, 0), (2, 2), model="tied"),
]
OTHERS = [
    *_changes("bf16", (2, 1), (1, 1)),
    *_changes("bf16", (2, 2), (1, 1)),
    *_changes("bf16", (1, 3), (2, 3)),
    *_changes("no", (2, 1), (4, 1), (2, 2)),
    *_changes("no", (4, 1), (3, 1)),
    *_changes("no", (1, 3), (2, 3)),
    *_changes("no", (2, 0), (1, 0)),
    *_changes("no", (1, 0), (2, 1)),
    *_changes("no", (3, 3), (2, 0)),
    *_changes("no", (3, 1), (2, 3)),
    *_changes("no", (1, 1), (2, 1), (1, 3), (1, 0), model="tied"),
    *_changes("no", (2, 3), (1, 0), model="tied"),
    *_changes("no", (1, 0), (1, 3), model="tied"),
]


def _arguments(
    scratch: Path, name: str, precision: str, ranks: int, zero: int, *more: str, model: str = "model"
) -> list[str]:
    micro_batch = 3 if ranks == 4 else 2  # another micro batch, too
    flags = tiny.flags(scratch)
    flags[flags.index("--model_name") + 1] = str(scratch / model)
    return [
        *flags, *FLAGS.split(), "--run_name", name, "--mixed_precision", precision,
        "--zero_stage", str(zero), "--micro_batch", str(micro_batch), "--lr", LEARNING_RATE[precision], *more,
    ]  # fmt: skip


def _in_one_launch_a_size(runs: list[tuple[int, dict[str, Any]]], directory: Path) -> None:
    for size in sorted({ranks for ranks, _ in runs}):
        run_all([run for ranks, run in runs if ranks == size], directory, size)


@pytest.fixture(scope="module")
def scratch(request: pytest.FixtureRequest, tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every selected run trained until STOP, copied for each of its changes, and trained on."""
    directory = tmp_path_factory.mktemp("elastic")
    tiny.write_tied_model(tiny_scratch / "tied")
    changes: list[Change] = selected(request, "change")
    before: list[tuple[int, dict[str, Any]]] = []
    for saved in dict.fromkeys(change.saved for change in changes):
        layout, stop = (saved.precision, saved.ranks, saved.zero), ("--stop_step", str(STOP))
        argv = _arguments(tiny_scratch, saved.name, *layout, *stop, model=saved.model)
        before.append((saved.ranks, {"phase": "pptrain", "argv": argv, "code": 86}))
    for straight in dict.fromkeys(change.saved.straight for change in changes):
        argv = _arguments(tiny_scratch, f"{straight.name}_straight", straight.precision, 1, 1, model=straight.model)
        before.append((1, {"phase": "pptrain", "argv": argv}))
    _in_one_launch_a_size(before, directory)

    after: list[tuple[int, dict[str, Any]]] = []
    for change in changes:
        shutil.copytree(tiny_scratch / change.saved.name, tiny_scratch / change.name)
        layout = change.saved.precision, change.ranks, change.zero
        argv = _arguments(tiny_scratch, change.name, *layout, model=change.saved.model)
        after.append((change.ranks, {"phase": "pptrain", "argv": argv}))
    _in_one_launch_a_size(after, directory)
    return tiny_scratch


@pytest.mark.launch
@pytest.mark.parametrize("change", [*CHANGES, *slow(*OTHERS)], ids=lambda change: change.name.removeprefix("elastic_"))
def test_continues_as_if_nothing_had_changed(scratch: Path, change: Change) -> None:
    rows = read_log(scratch / change.name)
    precision = change.saved.precision
    straight = read_log(scratch / f"{change.saved.straight.name}_straight")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["ledger"] for row in rows] == [row["ledger"] for row in straight]
    assert [row["stage"] for row in rows] == [row["stage"] for row in straight]
    assert [row["lr"] for row in rows] == [row["lr"] for row in straight]
    assert [row["pflops"] for row in rows] == [row["pflops"] for row in straight]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(rows, straight, strict=True)) <= LOSS_TOLERANCE[precision]


@pytest.mark.parametrize(("ranks", "precision", "notices"), [(2, "bf16", 1), (2, "fp32", 0), (1, "bf16", 0)])
def test_a_run_from_before_gradient_sums_in_fp32_continues_with_one_notice(
    ranks: int, precision: str, notices: int, caplog: pytest.LogCaptureFixture
) -> None:
    saved = TrainState(1, ranks, 2, 1, 2 * ranks, zero_stage=1, precision=precision, step=7, flops=9)
    current = replace(saved, step=0, fingerprints={"gradient_sums": "fp32"})
    with caplog.at_level(logging.WARNING):
        state = adapted_state(saved, current, Path("step_00000007"), strict_layout=True, accepted=())
        again = replace(state, step=8)
        adapted_state(again, current, Path("step_00000008"), strict_layout=True, accepted=())
    notice = ["gradients were summed over ranks in bf16 until step 7, and now are in fp32"]
    assert caplog.messages == notice * notices


@pytest.mark.parametrize(("rows", "notices"), [(ONE_A_ROW, 1), ("end to end", 0)])
def test_a_run_whose_documents_saw_one_another_continues_with_one_notice(
    rows: str, notices: int, caplog: pytest.LogCaptureFixture
) -> None:
    sums = {"gradient_sums": "fp32"}
    saved = TrainState(1, 1, 2, 1, 2, zero_stage=1, precision="fp32", step=7, flops=9, fingerprints=sums)
    current = replace(saved, step=0, fingerprints=sums | {"documents": rows})
    with caplog.at_level(logging.WARNING):
        state = adapted_state(saved, current, Path("step_00000007"), strict_layout=True, accepted=())
        adapted_state(replace(state, step=8), current, Path("step_00000008"), strict_layout=True, accepted=())
    expected = ["documents of a micro-batch influenced one another until step 7, and now have a row each"]
    assert caplog.messages == expected * notices


def test_a_run_from_before_flops_were_counted_continues_with_one_notice(caplog: pytest.LogCaptureFixture) -> None:
    saved = TrainState(1, 1, 2, 1, 2, zero_stage=1, precision="fp32", step=7, fingerprints={"gradient_sums": "fp32"})
    values = dict(saved.to_client_state()["ds_train"])
    for name in ("flops", "gpu_hours"):
        del values[name]
    former = TrainState.from_client_state({"ds_train": values}, "step_00000007")
    current = replace(saved, step=0)
    with caplog.at_level(logging.WARNING):
        state = adapted_state(former, current, Path("step_00000007"), strict_layout=True, accepted=())
        adapted_state(replace(state, step=8, flops=10**12), current, Path("x"), strict_layout=True, accepted=())
    notice = "step_00000007 has no count of FLOPs and device hours: both count from step 7 on"
    assert caplog.messages == [notice] and (state.flops, state.gpu_hours) == (0, 0.0)


def test_a_run_that_had_two_spaces_before_an_answer_does_not_resume_with_one() -> None:
    """As version 0.1 did with tokenizers that put a space before each text."""
    saved = TrainState(1, 1, 2, 1, 2, zero_stage=1, precision="fp32", step=7, fingerprints={"gradient_sums": "fp32"})
    current = replace(saved, step=0, fingerprints={"gradient_sums": "fp32", "answer_spaces": "1"})
    with pytest.raises(UserError, match=r"answer_spaces: saved 2, now 1.*--accept_change answer_spaces"):
        adapted_state(saved, current, Path("step_00000007"), strict_layout=False, accepted=())
    state = adapted_state(saved, current, Path("step_00000007"), strict_layout=False, accepted=["answer_spaces"])
    adapted_state(replace(state, step=8), current, Path("step_00000008"), strict_layout=False, accepted=())


def test_hashes_are_shown_in_short() -> None:
    assert _change("a" * 64, "b" * 64) == f"saved another one, with hash {'a' * 12} …, now {'b' * 12} …"


@pytest.mark.launch
class TestRefusals:
    def _stopped_run(self, scratch: Path, name: str) -> list[str]:
        arguments = _arguments(scratch, name, "no", 1, 1)
        done = launch("ds_train/pptrain.py", *arguments, "--stop_step", "2", num_ranks=1)
        assert done.returncode == 86, done.stdout[-3000:]
        expected = (
            "stopped after step 2, which is saved: --stop_step 2. Exit code 86; the same command without it, or with"
        )
        assert expected in done.stdout
        assert json.loads((scratch / name / "exits.jsonl").read_text())["exit_code"] == 86
        return arguments

    def test_what_cannot_be_made_right_is_refused_before_anything_is_touched(
        self, tiny_scratch: Path, tmp_path: Path
    ) -> None:
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
        runs = [
            {"phase": "pptrain", "argv": [*arguments, *flags], "error": message} for flags, message in refusals.items()
        ]
        run_all(runs, tmp_path, 1)
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
        assert after == before

    def test_nothing_is_written_into_the_checkpoint_of_another_run(self, tiny_scratch: Path, tmp_path: Path) -> None:
        """Two runs resume from it in another layout."""
        self._stopped_run(tiny_scratch, "foreign")
        foreign = tiny_scratch / "foreign" / "checkpoints" / "step_00000002"
        before = {path: path.stat().st_mtime_ns for path in foreign.parent.rglob("*")}
        runs = []
        for zero in (2, 3):
            argv = _arguments(tiny_scratch, f"taker_{zero}", "no", 1, zero, "--max_steps", "4")
            runs.append({"phase": "pptrain", "argv": [*argv, "--resume_from", str(foreign)]})
        run_all(runs, tmp_path, 1)
        assert {path: path.stat().st_mtime_ns for path in foreign.parent.rglob("*")} == before
        for zero in (2, 3):
            assert [row["step"] for row in read_log(tiny_scratch / f"taker_{zero}")] == [3, 4]

    def test_accepted_change_continues(self, tiny_scratch: Path) -> None:
        arguments = self._stopped_run(tiny_scratch, "accepted")
        flags = ["--global_batch", "6", "--max_steps", "4", "--accept_change", "global_batch"]
        done = launch("ds_train/pptrain.py", *arguments, *flags, num_ranks=1)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "--accept_change global_batch: saved 12, now 6" in done.stdout
        assert [row["step"] for row in read_log(tiny_scratch / "accepted")] == [1, 2, 3, 4]

    def test_checkpoint_of_another_run_is_refused(self, tiny_scratch: Path, tmp_path: Path) -> None:
        own = _arguments(tiny_scratch, "own", "no", 1, 1)
        other = _arguments(tiny_scratch, "other", "no", 1, 1, "--seed", "7")
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
