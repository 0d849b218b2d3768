"""Whole runs through the ``deepspeed`` launcher, as users start them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.launching import launch, read_log
from tests.support.runs import EVAL_FIELDS, TRAIN_FIELDS

COMMON = "--global_batch 16 --micro_batch 4 --lr 4e-3 --log_every 5".split()


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path) -> Path:
    """pptrain, then pretrain from its checkpoint, on two ranks in bf16 with ZeRO-1, as shipped."""
    flags = {name: [*tiny.flags(tiny_scratch, precision=None), *COMMON] for name in TRAIN_FIELDS}
    flags["pptrain"] += "--max_steps 40 --curr_window 32 --curr_threshold 0.5 --save_every 15 --run_name first".split()
    flags["pretrain"] += "--total_steps 40 --mixin_percent 0.2 --pptrain_run first --run_name second".split()
    flags["pretrain"] += "--eval_every 15 --allow_repeat".split()
    for name in ("--model_name", "--tokenizer"):  # both come with the checkpoint
        at = flags["pretrain"].index(name)
        del flags["pretrain"][at : at + 2]
    for phase, arguments in flags.items():
        done = launch(f"ds_train/{phase}.py", *arguments, num_ranks=2, through_launcher=True)
        assert done.returncode == 0, done.stdout[-4000:]
        (tiny_scratch / f"{phase}.out").write_text(done.stdout)
    return tiny_scratch


@pytest.mark.launch
class TestTwoRanks:
    @pytest.mark.parametrize(("phase", "run"), [("pptrain", "first"), ("pretrain", "second")])
    def test_logs_have_exactly_the_promised_fields(self, scratch: Path, phase: str, run: str) -> None:
        train, evaluations = read_log(scratch / run), read_log(scratch / run, "eval")
        assert [row["step"] for row in train] == list(range(5, 41, 5))
        assert all(set(row) == TRAIN_FIELDS[phase] for row in train)
        assert all(set(row) == EVAL_FIELDS[phase] for row in evaluations)
        assert evaluations[0]["step"] == 0
        assert all(row["num_examples"] == 8 for row in evaluations)

    @pytest.mark.parametrize(
        ("phase", "shown"),
        [
            ("pptrain", ["fresh", "random weights", "curriculum", "generator"]),
            ("pretrain", ["first/checkpoints/step_00000040", "mixin", "20.0%", "c4_packed"]),
        ],
    )
    def test_a_run_is_summed_up_before_it_begins(self, scratch: Path, phase: str, shown: list[str]) -> None:
        lines = (scratch / f"{phase}.out").read_text().splitlines()
        begin = next(number for number, line in enumerate(lines) if line.endswith(f" I {phase}"))
        end = next(number for number, line in enumerate(lines) if line.startswith("  memory of a rank  "))
        summary = "\n".join(lines[begin : end + 1])
        layout = "global batch 16 over 2 ranks; ZeRO 1, bf16", "at most 1,024 tokens, 4 × seq_len"
        for words in (*layout, "AdamW", *shown):
            assert words in summary
        assert end - begin < 20, "one screen"
        assert sum(line.startswith("  memory of a rank  ") for line in lines) == 1, "printed by rank 0 only"

    @pytest.mark.parametrize("run", ["first", "second"])
    def test_loss_falls(self, scratch: Path, run: str) -> None:
        rows = read_log(scratch / run)
        assert rows[-1]["loss"] < rows[0]["loss"] - 0.3

    def test_evaluations_follow_promotions_and_the_last_step(self, scratch: Path) -> None:
        train, evaluations = read_log(scratch / "first"), read_log(scratch / "first", "eval")
        assert evaluations[-1]["step"] == train[-1]["step"] == 40
        after = [row for row in evaluations if row["mastered"]]
        stages = [row["stage"] for row in after]
        assert stages == list(range(2, len(stages) + 2)) and len(stages) >= 2
        for before, row in pairwise([evaluations[0], *after]):
            assert row["step"] % 10 == 0
            assert all(r["stage"] == before["stage"] for r in train if before["step"] < r["step"] <= row["step"])

    def test_pretrain_evaluates_at_its_cadence_and_end(self, scratch: Path) -> None:
        evaluations = read_log(scratch / "second", "eval")
        assert [row["step"] for row in evaluations] == [0, 15, 30, 40]
        assert evaluations[-1]["heldout_c4_loss"] < evaluations[0]["heldout_c4_loss"]

    def test_learning_rates_are_the_schedule(self, scratch: Path) -> None:
        assert [row["lr"] for row in read_log(scratch / "first")] == pytest.approx([4e-3] * 8)
        last = read_log(scratch / "second")[-1]
        assert last["lr"] == pytest.approx(4e-4)

    def test_counts_and_shares(self, scratch: Path) -> None:
        rows = read_log(scratch / "second")
        assert all(row["c4_count"] + row["mixin_count"] == 16 for row in rows)
        assert all((row["mixin_loss"] is None) == (row["mixin_count"] == 0) for row in rows)
        assert rows[-1]["mixin_fraction"] == pytest.approx(0.2, abs=0.05)

    def test_run_directory(self, scratch: Path) -> None:
        assert json.loads((scratch / "first" / "deepspeed.json").read_text())["gradient_accumulation_steps"] == 2
        steps = sorted(path.name for path in (scratch / "first" / "checkpoints").glob("step_*"))
        assert steps == ["step_00000015", "step_00000030", "step_00000040"]
        assert (scratch / "first" / "checkpoints" / "latest").read_text() == "step_00000040"
        state = json.loads((scratch / "first" / "checkpoints" / "step_00000040" / "state.json").read_text())
        assert (state["step"], state["tokens"]) == (40, read_log(scratch / "first")[-1]["tokens"])
        last_exit = json.loads((scratch / "first" / "exits.jsonl").read_text().splitlines()[-1])
        assert (last_exit["step"], last_exit["exit_code"]) == (40, 0)

    def test_finished_run_has_nothing_to_do(self, scratch: Path) -> None:
        before = read_log(scratch / "first")
        arguments = [
            *tiny.flags(scratch, precision=None),
            *COMMON,
            *"--max_steps 40 --curr_window 32 --curr_threshold 0.5".split(),
        ]
        done = launch("ds_train/pptrain.py", *arguments, "--run_name", "first", num_ranks=2)
        assert done.returncode == 0, done.stdout[-4000:]
        assert read_log(scratch / "first") == before

    def test_evaluate(self, scratch: Path, tmp_path: Path) -> None:
        output = tmp_path / "evaluation.json"
        accuracies = []
        for ranks in (1, 2):
            done = launch(
                "ds_train/evaluate.py", str(scratch / "second"), "--scratch_dir", str(scratch), "--split", "test",
                "--dtype", "bf16", "--micro_batch", "3", "--output", str(output), "--num_ranks", str(ranks),
                "--num_nodes", "1", num_ranks=ranks,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-4000:]
            report = json.loads(output.read_text())
            assert report["num_examples"] == 20 == sum(row["num_examples"] for row in report["by_lookahead"])
            correct = sum(row["num_examples"] * row["accuracy_any"] for row in report["by_lookahead"])
            assert correct / 20 == pytest.approx(report["accuracy_any"])
            assert report["accuracy_first"] <= report["accuracy_any"]
            # In training, the engine's bf16 weights are the same and so is the C4 validation set.
            expected = read_log(scratch / "second", "eval")[-1]["heldout_c4_loss"]
            assert report["c4_loss"] == pytest.approx(expected, abs=2e-3)
            assert "any valid answer" in done.stdout
            rows = [report, *report["by_lookahead"]]
            accuracies.append([{n: row[n] for n in row if n.startswith(("accuracy", "num"))} for row in rows])
        assert accuracies[0] == accuracies[1], "another number of ranks, the same intervals"
