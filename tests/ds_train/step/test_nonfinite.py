"""A loss or gradient that is not finite on one rank: no rank updates, and the message names the samples."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.samples.samplers import Cursor, GlobalBatchPlan, SampleKind
from ds_train.checkpoints.save import read_state
from ds_train.config.layout import Layout
from ds_train.step.nonfinite import NonFinite
from tests.support import tiny
from tests.support.engine_configs import changed, resolve
from tests.support.launching import launch, read_log
from tests.support.selection import selected, slow

PLAN = GlobalBatchPlan(
    step=7,
    stage=3,
    sources=np.full(8, SampleKind.STREAM, np.uint8),
    indices=np.arange(48, 56),
    next_cursor=Cursor(56, 3),
)
LAYOUT = Layout(world_size=2, micro_batch=2, global_batch=8)


def test_ranks_and_samples_are_named() -> None:
    found = NonFinite("loss", [[], [6, 7]])
    assert found.ranks == [1]
    message = found.describe(PLAN)
    assert "loss of step 7" in message and "on rank 1," in message and "rank 1: stream 54-55 (stage 3)" in message
    both = NonFinite("gradient norm", [[0, 1, 2, 3], [4, 5]]).describe(PLAN)
    assert "on ranks 0, 1," in both and "rank 0: stream 48-51 (stage 3); rank 1: stream 52-53 (stage 3)" in both


def test_ids_of_a_mixture() -> None:
    sources = np.array([1, 2, 1, 1, 1, 1, 1, 1], np.uint8)
    plan = GlobalBatchPlan(2, 0, sources, np.array([10, 3, 11, 13, 14, 15, 16, 17]), Cursor())
    message = NonFinite("loss", [[0, 1, 2, 3], []]).describe(plan)
    assert message.endswith("rank 0: c4 10-11, 13, mixin 3")


def test_finite_parts_with_a_sum_that_is_not() -> None:
    found = NonFinite("gradient norm", [[], []])
    assert found.ranks == [] and "each single micro-batch is" in found.describe(PLAN)


def test_many_ranks_are_reported_in_short() -> None:
    message = NonFinite("loss", [[rank] for rank in range(8)]).describe(PLAN)
    assert "rank 3: stream 51" in message and "rank 4:" not in message and "4 ranks more" in message


def test_dump_holds_every_sample(tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    NonFinite("loss", [[], [6, 7]]).dump(path, PLAN, LAYOUT, {"loss": "nan"})
    dumped = json.loads(path.read_text())
    samples = dumped.pop("samples")
    assert dumped == {"step": 7, "what": "loss", "ranks": [1], "loss": "nan"}
    assert [sample["index"] for sample in samples] == list(range(48, 56))
    assert [sample["rank"] for sample in samples] == [0] * 4 + [1] * 4
    assert [sample["index"] for sample in samples if sample["suspect"]] == [54, 55]
    assert samples[0] == {"rank": 0, "source": "stream", "index": 48, "stage": 1 + 2, "suspect": False}


@pytest.mark.parametrize("key", ["bf16.check_grad_overflow", "zero_optimization.compute_grad_norm"])
def test_deepspeeds_check_cannot_be_switched_off(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is refused"):
        resolve(changed((key, False)))


# Precision, ZeRO stage.
REFERENCES = [("no", 1), ("bf16", 1)]
CONFIGURATIONS = [*REFERENCES, ("no", 0), ("bf16", 3), *slow(("no", 2), ("no", 3), ("bf16", 2))]
INJECT = {"3": ["loss", 1, 0], "4": ["gradient", 0, 1], "7": ["loss", 1, 1]}
STOPPED_AT, LAST = 7, 8


def _name(precision: str, zero: int) -> str:
    return f"nonfinite_{precision}_zero{zero}"


def _run(scratch: Path, precision: str, zero: int, inject: dict, *more: str, phase: str = "pptrain") -> dict[str, Any]:
    argv = [
        *tiny.flags(scratch), "--lr", "2e-3", "--global_batch", "16", "--micro_batch", "1", "--num_workers", "0",
        "--save_every", "2", "--keep_last", "0", "--mixed_precision", precision, "--zero_stage", str(zero), *more,
    ]  # fmt: skip
    return {"phase": phase, "argv": argv, "inject": inject}


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest, tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, list[dict]]]:
    """Output and reports, by run, of one launch on two ranks.

    Each configuration may skip two steps and gets three bad ones, then is resumed without; the last run may skip none.
    """
    runs = []
    for precision, zero in dict.fromkeys([*REFERENCES, *selected(request, "run")]):
        flags = ["--max_steps", str(LAST), "--skip_nonfinite", "2", "--run_name", _name(precision, zero)]
        runs += [_run(tiny_scratch, precision, zero, inject, *flags) for inject in (INJECT, {})]
    flags = "--total_steps 8 --mixin_percent 0.3 --pptrain_checkpoint none --run_name nonfinite_none".split()
    runs.append(_run(tiny_scratch, "bf16", 1, {"3": ["gradient", 1, 0]}, *flags, phase="pretrain"))
    directory = tmp_path_factory.mktemp("nonfinite")
    (directory / "runs.json").write_text(json.dumps(runs))
    done = launch(
        "tests/system/launched_nonfinite.py", str(directory / "runs.json"), str(directory / "report.json"),
        num_ranks=2,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-5000:]
    reports = json.loads((directory / "report.json").read_text())
    assert len(reports) == len(runs), done.stdout[-5000:]
    by_run: dict[str, list[dict]] = defaultdict(list)
    for run, report in zip(runs, reports, strict=True):
        by_run[run["argv"][run["argv"].index("--run_name") + 1]].append(report)
    return done.stdout, by_run


@pytest.mark.launch
class TestTwoRanks:
    @pytest.fixture(params=CONFIGURATIONS, ids=lambda c: _name(*c))
    def run(self, request, tiny_scratch: Path, outcome) -> tuple[Path, dict, dict]:
        """A run's directory, the report of its first launch and of its second."""
        name = _name(*request.param)
        first, second = outcome[1][name]
        return tiny_scratch / name, first, second

    def test_no_bad_step_changes_weights_or_optimizer(self, run) -> None:
        assert run[1]["changed"] == [[], []]

    def test_one_too_many_stops(self, run) -> None:
        directory, first, _ = run
        assert "loss of step 7 is not finite on rank 1," in first["error"]
        assert "rank 1: stream 1" in first["error"] and "(stage 1)" in first["error"]
        assert f"{directory}/nonfinite_step_00000007.json" in first["error"] and "--skip_nonfinite 3" in first["error"]

    def test_samples_are_kept(self, run) -> None:
        dumps = [json.loads(path.read_text()) for path in sorted(run[0].glob("nonfinite_step_*.json"))]
        assert [(dump["step"], dump["what"], dump["ranks"]) for dump in dumps] == [
            (3, "loss", [1]), (4, "gradient norm", [0]), (7, "loss", [1]),
        ]  # fmt: skip
        suspects = [[sample["index"] for sample in dump["samples"] if sample["suspect"]] for dump in dumps]
        assert [len(found) for found in suspects] == [6, 2, 2], "of eight samples of a rank in two micro-batches"
        for found, step, rank in zip(suspects, (3, 4, 7), (1, 0, 1), strict=True):
            first = 16 * (step - 1) + 8 * rank
            assert {*found} <= {*range(first, first + 8)}

    def test_skipped_steps_are_logged_and_leave_no_flags(self, run) -> None:
        rows = {row["step"]: row for row in read_log(run[0])}
        assert [rows[step]["skipped_steps"] for step in range(1, LAST + 1)] == [0, 0, 1, 2, 2, 2, 2, 2]
        assert rows[3]["loss"] is None and rows[3]["grad_norm"] is None
        assert rows[4]["loss"] is not None and rows[4]["grad_norm"] is None
        assert rows[4]["curr_acc"] == rows[3]["curr_acc"] == rows[2]["curr_acc"]
        assert all(row["loss"] and row["grad_norm"] for step, row in rows.items() if step not in (3, 4))

    def test_count_survives_a_resume(self, run) -> None:
        directory, _, second = run
        assert second["error"] is None
        states = [read_state(directory / "checkpoints" / f"step_{step:08d}") for step in (2, 4, 6, LAST)]
        assert [state.skipped_steps for state in states] == [0, 2, 2, 2]
        assert [len(state.window) for state in states] == [32, 32, 64, 96]
        assert [state.consumed_index for state in states] == [32, 64, 96, 128]

    def test_the_rest_is_the_same_in_every_layout(self, run, tiny_scratch: Path) -> None:
        tolerance = 1e-6 if "_no_" in run[0].name else 2e-3
        reference = read_log(tiny_scratch / _name("no" if "_no_" in run[0].name else "bf16", 1))
        for row, expected in zip(read_log(run[0]), reference, strict=True):
            assert (row["ledger"], row["lr"], row["tokens"]) == tuple(expected[k] for k in ("ledger", "lr", "tokens"))
            assert row["loss"] == pytest.approx(expected["loss"], abs=tolerance)

    def test_without_leave_the_first_bad_step_ends_the_run(self, tiny_scratch: Path, outcome) -> None:
        output, reports = outcome
        directory = tiny_scratch / "nonfinite_none"
        (report,) = reports[directory.name]
        assert report["changed"] == [[], []]
        assert "gradient norm of step 3 is not finite on rank 1," in report["error"]
        assert output.count(f"error: {report['error']}") == 1
        assert [path.name for path in (directory / "checkpoints").glob("step_*")] == ["step_00000002"]
        assert [row["step"] for row in read_log(directory)] == [1, 2]
