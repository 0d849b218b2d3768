"""Monitors of a run that was stopped, lost its newest checkpoint and was resumed: one curve each, under our names."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_tools.base.errors import Problems, UserError
from ds_train.training import monitors
from ds_train.training.monitors import check_monitors, place_monitors
from tests.support import tiny
from tests.support.launching import launch, read_log

BLOCKS = {name: {"enabled": True} for name in ("tensorboard", "csv_monitor")}


@pytest.fixture(scope="module")
def run(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, of which the last three were trained twice."""
    config = tmp_path_factory.mktemp("json") / "monitors.json"
    config.write_text(json.dumps(json.loads(Path("ds_configs/pptrain.json").read_text()) | BLOCKS))
    flags = f"""--deepspeed_config {config} --run_name monitored --global_batch 8 --micro_batch 4 --log_every 1
        --save_every 3 --max_steps 7 --curr_window 16 --curr_threshold 0.4 --curr_check_every 2
        --wandb project""".split()
    directory = tiny_scratch / "monitored"
    for more in (["--stop_step", "6"], []):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_MODE", "offline")
            done = launch("ds_train/pptrain.py", *tiny.flags(tiny_scratch), *flags, *more, num_ranks=1)
        assert done.returncode == (86 if more else 0), done.stdout[-4000:]
        if more:
            for path in (directory / "checkpoints" / "step_00000006").glob("*.pt"):
                path.write_bytes(b"damaged")
    assert len((directory / "launches.jsonl").read_text().splitlines()) == 2
    return directory


@pytest.mark.launch
def test_csv_has_each_row_once(run: Path) -> None:
    rows = read_log(run)
    for column in ("loss", "lr", "stage", "tokens_per_second"):
        with (run / "csv_monitor" / f"pptrain_train_{column}.csv").open(newline="") as file:
            head, *values = csv.reader(file)
        assert head == ["step", column]
        assert [(int(step), float(value)) for step, value in values] == [(row["step"], row[column]) for row in rows]
    files = {path.name for path in (run / "csv_monitor").iterdir()}
    assert {"pptrain_eval_heldout_acc.csv", "pptrain_eval_heldout_loss.csv"} <= files
    assert all(name.startswith(("pptrain_train_", "pptrain_eval_")) for name in files), "DeepSpeed's own count samples"


@pytest.mark.launch
def test_tensorboard_continues_with_the_same_curve(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    rows = read_log(run)
    loss = events.Scalars("pptrain/train/loss")
    assert [(event.step, event.value) for event in loss] == [(r["step"], pytest.approx(r["loss"])) for r in rows]
    evaluations = {event.step: event.value for event in events.Scalars("pptrain/eval/heldout_loss")}
    assert evaluations == {row["step"]: pytest.approx(row["heldout_loss"]) for row in read_log(run, "eval")}
    assert all(tag.startswith("pptrain/") for tag in events.Tags()["scalars"])


@pytest.mark.launch
def test_wandb_resumes_the_same_run(run: Path) -> None:
    identity = (run / "wandb_run_id").read_text()
    launches = sorted((run / "wandb").glob("offline-run-*"))
    assert len(launches) == 2 and all(path.name.endswith(identity) for path in launches)


def test_a_fresh_start_is_another_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for is_resumed in (False, True, False):
        monkeypatch.setattr(monitors.os, "environ", {"WANDB_NAME": "my own"})
        monitors.join_wandb(tmp_path, "run", is_resumed)
        found.append(monitors.os.environ["WANDB_RUN_ID"])
        assert monitors.os.environ["WANDB_NAME"] == "my own"
    assert found[0] == found[1] != found[2]


def test_places(tmp_path: Path) -> None:
    config = {
        "tensorboard": {"enabled": True},
        "csv_monitor": {"enabled": True, "output_path": "/elsewhere"},
    }
    place_monitors(config, tmp_path / "A" / "seed_1", "A/seed_1")
    assert config["tensorboard"] == {
        "enabled": True, "output_path": str(tmp_path / "A" / "seed_1"), "job_name": "tensorboard",
    }  # fmt: skip
    assert config["csv_monitor"] == {"enabled": True, "output_path": "/elsewhere", "job_name": "A/seed_1"}
    off = {"tensorboard": {"enabled": False}}
    place_monitors(off, tmp_path, "run")
    assert off == {"tensorboard": {"enabled": False}}


def problems_of(config: dict, is_main: bool = True) -> str:
    problems = Problems()
    check_monitors(config, problems, is_main=is_main)
    try:
        problems.raise_if_any()
    except UserError as error:
        return str(error)
    return ""


def test_a_missing_package_is_reported_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "find_spec", lambda name: None)
    config = {"wandb": {"enabled": True}, "tensorboard": {"enabled": False}}
    assert re.search(r"^wandb\.enabled needs the package wandb.*pip install wandb", problems_of(config, is_main=False))


@pytest.mark.parametrize(
    ("where", "content"),
    [
        ("WANDB_API_KEY", "key"), ("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled"),
        (".netrc", "machine api.wandb.ai login user password key"), (".config/wandb/settings", "[default]"),
    ],
)  # fmt: skip
def test_wandb_needs_a_key_of_rank_0(where: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = {"wandb": {"enabled": True, "project": "ours"}}
    assert "there is no key for Weights & Biases, neither in WANDB_API_KEY nor" in problems_of(config)
    assert problems_of(config, is_main=False) == problems_of({"wandb": {"enabled": False}}) == ""
    if where.startswith("WANDB_"):
        monkeypatch.setenv(where, content)
    else:
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where).write_text(content)
    assert problems_of(config) == ""
