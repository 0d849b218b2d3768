"""A small Qwen3 at lookahead 256 and seq_len 8,192, as in the users' experiment: trained, resumed and evaluated."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from data_tools import build_data_splits
from ds_train import evaluate
from ds_train.phases import pptrain
from tests.support import tiny
from tests.support.comparing import assert_same_checkpoint, comparable
from tests.support.launching import read_log
from tests.support.process_group import own_process_group

pytestmark = pytest.mark.launch

SEQ_LEN, LOOKAHEAD, STEPS, BATCH = 8192, 256, 2, 2
SMALLER = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 64, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
# As in users-qwen3.yaml, with fewer examples.
FLAGS = f"""--loss answer --curr_window 8 --curr_check_every 1 --min_stage_steps 200 --start_stage {LOOKAHEAD}
    --max_steps {STEPS} --global_batch {BATCH} --micro_batch {BATCH} --lr 2e-3 --num_workers 0 --eval_subset_size 2"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one go, and one that was stopped after a step."""
    directory = tmp_path_factory.mktemp("long")
    preset = json.loads((files("ds_configs") / "models" / "qwen3-0.6b.json").read_text())
    tiny.write_tokenizer(directory / "tokenizer")
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text(json.dumps(preset | SMALLER))
    build_data_splits.main(
        f"--scratch_dir {directory} --max_input_size {6 * LOOKAHEAD} --max_lookahead {LOOKAHEAD} --eval_size 2 "
        "--test_size 4 --mixin_size 2 --workers 1".split()
    )
    flags = [*tiny.flags(directory), *FLAGS.split(), "--seq_len", str(SEQ_LEN)]
    for name, more, code in (("straight", [], 0), ("stopped", ["--stop_step", "1"], 86), ("stopped", [], 0)):
        with own_process_group():
            assert pptrain.main([*flags, "--run_name", name, *more]) == code
    return directory


def test_long_problems_are_read_whole(scratch: Path) -> None:
    rows = read_log(scratch / "straight")
    assert len(rows) == STEPS and rows[-1]["tokens"] > STEPS * BATCH * 2048
    assert all(row["stage"] == LOOKAHEAD and row["lookahead"] == 254 for row in rows)


def test_a_resumed_run_continues_as_if_it_had_not_stopped(scratch: Path) -> None:
    for log in ("train", "eval"):
        assert comparable(read_log(scratch / "stopped", log)) == comparable(read_log(scratch / "straight", log))
    assert_same_checkpoint(scratch / "stopped", scratch / "straight", STEPS)


def test_it_is_evaluated_on_all_of_the_test_split(scratch: Path) -> None:
    report = scratch / "report.json"
    with own_process_group():
        code = evaluate.main(
            [str(scratch / "stopped"), "--scratch_dir", str(scratch), "--split", "test", "--output", str(report)]
        )
    found = json.loads(report.read_text())
    assert code == 0 and (found["seq_len"], found["num_examples"], found["num_too_long"]) == (SEQ_LEN, 4, 0)
    assert max(row["lookahead"] for row in found["by_lookahead"]) > 128
