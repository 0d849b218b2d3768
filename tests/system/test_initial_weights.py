"""What a run started from stays recorded: over a resume, when it is pruned, and when `latest` is another step."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.runs.settings import load_settings
from tests.support import tiny
from tests.support.launching import run_all


def _run(phase: str, scratch: Path, name: str, *more: str, **outcome: Any) -> dict[str, Any]:
    flags = [*tiny.flags(scratch), "--global_batch", "8", "--run_name", name, *more]
    if phase == "pretrain":
        flags += ["--total_steps", "4", "--pptrain_run", "weights_first"]
        for name in ("--model_name", "--tokenizer"):
            del flags[flags.index(name) : flags.index(name) + 2]
    return {"phase": phase, "argv": flags, **outcome}


def _recorded(run: Path, step: int) -> list[dict[str, Any]]:
    """In the checkpoint, and in every launch."""
    state = json.loads((run / f"checkpoints/step_{step:08d}/state.json").read_text())
    launches = [json.loads(line) for line in (run / "launches.jsonl").read_text().splitlines()]
    return [state["initial_weights"], *(launch["initial_weights"] for launch in launches)]


@pytest.mark.launch
def test_recorded_weights_stay(tiny_scratch: Path, tmp_path: Path) -> None:
    first = tiny_scratch / "weights_first"
    run_all(
        [
            _run("pptrain", tiny_scratch, first.name, "--max_steps", "2"),
            _run("pretrain", tiny_scratch, "warm", "--stop_step", "2", code=86),
            _run("pretrain", tiny_scratch, "lost", "--stop_step", "2", code=86),
            _run("pptrain", tiny_scratch, first.name, "--max_steps", "4"),
        ],
        tmp_path,
        1,
    )
    origin = first / "checkpoints" / "step_00000002"
    shutil.rmtree(origin)
    shutil.rmtree(tiny_scratch / "lost" / "checkpoints")
    from_there, other = ["--pptrain_checkpoint", str(origin)], "initial_weights"
    run_all(
        [
            _run("pretrain", tiny_scratch, "warm", "--stop_step", "3", code=86),
            _run("pretrain", tiny_scratch, "warm", "--resume", str(tiny_scratch / "warm/checkpoints/step_00000003"),
                 *from_there),
            _run("pretrain", tiny_scratch, "warm", "--resume", "none", error=f"--accept_change {other}"),
            _run("pretrain", tiny_scratch, "lost", error=f"--accept_change {other}"),
            _run("pretrain", tiny_scratch, "lost", "--accept_change", other),
        ],
        tmp_path,
        1,
    )  # fmt: skip
    records = _recorded(tiny_scratch / "warm", 4)
    assert len(records) == 4 and records == records[:1] * 4
    assert (records[0]["path"], records[0]["run"], records[0]["step"]) == (str(origin), str(first), 2)
    assert records[0]["stage"] == 1 and len(records[0]["hash"]) == 32
    assert load_settings(tiny_scratch / "warm" / "run.yaml")["pptrain_checkpoint"] == str(origin)
    assert [record["step"] for record in _recorded(tiny_scratch / "lost", 4)] == [4, 2, 4]
