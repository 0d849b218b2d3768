"""What is resumable survives a checkpoint file; logs hold every step once and nothing that is no JSON."""

import dataclasses
import errno
import json
import math
import os
import random

import numpy as np
import pytest
import torch

from data_tools.base.errors import UserError
from data_tools.samples.samplers import Cursor
from ds_train.checkpoints.rank_rng import rng_state, set_rng_state
from ds_train.checkpoints.state import TrainState
from ds_train.training import metrics
from ds_train.training.metrics import JsonlLog

LAYOUT = {
    "seed": 1337,
    "world_size": 2,
    "micro_batch": 2,
    "grad_accum": 8,
    "global_batch": 32,
    "zero_stage": 2,
    "precision": "bf16",
}


def full_state() -> TrainState:
    """A state with a distinct value in every field."""
    return TrainState(
        **LAYOUT, step=200, consumed_index=6400, stage=7, c4_block_idx=6100, mixin_idx=300, window=[1, 0, 1, 1],
        tokens=10**12, mixin_tokens=10**10, overflows=12, ledger="ab" * 16, rng=[rng_state(), rng_state()],
        fingerprints={"splits": "x", "pack": "y"}, versions={"torch": "2"},
    )  # fmt: skip


def through_a_file(state: TrainState, path, **load) -> TrainState:
    torch.save({"module": {"w": torch.ones(2)}, **state.to_client_state()}, path)
    return TrainState.from_client_state(torch.load(path, **load), str(path))


def flat(value):
    """Nested values with tensors as lists, so that they can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("weights_only", [True, False])
def test_state_survives_a_checkpoint_file(tmp_path, weights_only):
    state = full_state()
    restored = through_a_file(state, tmp_path / "s.pt", weights_only=weights_only)
    assert flat(dataclasses.asdict(restored)) == flat(dataclasses.asdict(state))


def test_the_names_that_tools_read():
    (saved,) = full_state().to_client_state().values()
    assert set(saved) >= {
        "step", "consumed_index", "stage", "window", "c4_block_idx", "mixin_idx", "tokens", "rng", "fingerprints",
        "world_size", "micro_batch", "grad_accum", "global_batch", "seed", "versions",
    }  # fmt: skip


def test_generators_go_on_where_they_were_saved(tmp_path):
    set_rng_state({"python": random.Random(3).getstate(), "torch": torch.Generator().manual_seed(3).get_state()})
    saved = dataclasses.replace(full_state(), rng=[rng_state()])
    draws = [random.random(), *torch.rand(3).tolist()]
    assert [random.random(), *torch.rand(3).tolist()] != draws
    set_rng_state(through_a_file(saved, tmp_path / "s.pt", weights_only=True).rng[0])
    assert [random.random(), *torch.rand(3).tolist()] == draws


def test_saved_state_does_not_change_with_the_running_one():
    state = full_state()
    saved = state.to_client_state()
    state.window.append(0)
    state.fingerprints["splits"] = "z"
    (values,) = saved.values()
    assert values["window"] == [1, 0, 1, 1] and values["fingerprints"]["splits"] == "x"


@pytest.mark.parametrize("change", [lambda v: v.pop("window"), lambda v: v.update(colour="red"), lambda v: v.clear()])
def test_a_state_of_other_fields_is_refused(change):
    saved = full_state().to_client_state()
    change(next(iter(saved.values())))
    with pytest.raises(UserError, match=r"step_7.*--resume none"):
        TrainState.from_client_state(saved, "step_7")


@pytest.mark.parametrize("client_state", [{}, {"ds_train": None}, {"lr_scheduler": {}, "ds_train": [1]}])
def test_a_foreign_checkpoint_is_refused(client_state):
    with pytest.raises(UserError, match="step_7"):
        TrainState.from_client_state(client_state, "step_7")


def test_the_unknown_field_is_named():
    saved = full_state().to_client_state()
    next(iter(saved.values()))["colour"] = "red"
    with pytest.raises(UserError, match="colour"):
        TrainState.from_client_state(saved, "step_7")


def test_cursor_and_state_agree():
    state = full_state()
    assert state.cursor == Cursor(consumed_index=6400, stage=7, c4_block_idx=6100, mixin_idx=300)
    cursor = Cursor(1, 2, 3, 4)
    state.move_to(cursor)
    assert state.cursor == cursor
    assert (state.step, state.window) == (200, [1, 0, 1, 1])


def rows_of(path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_rows_are_written_as_given(tmp_path):
    log = JsonlLog(tmp_path / "logs" / "train.jsonl", is_writer=True)
    rows = [{"step": 1, "loss": 0.25, "curr_acc": None, "stage": 1}, {"step": 2, "ledger": "ab", "tokens": 10**14}]
    for row in rows:
        log.append(row)
    assert rows_of(tmp_path / "logs" / "train.jsonl") == rows
    assert list(rows_of(tmp_path / "logs" / "train.jsonl")[0]) == ["step", "loss", "curr_acc", "stage"]
    assert (tmp_path / "logs" / "train.jsonl").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_no_number_becomes_null(tmp_path, value):
    JsonlLog(tmp_path / "log.jsonl", is_writer=True).append({"step": 1, "loss": value, "lr": 0.5})
    assert rows_of(tmp_path / "log.jsonl") == [{"step": 1, "loss": None, "lr": 0.5}]


def test_only_the_writer_touches_the_file(tmp_path):
    log = JsonlLog(tmp_path / "logs" / "log.jsonl", is_writer=False)
    log.append({"step": 1})
    log.rewind(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "kept"), [(30, [10, 20, 30]), (29, [10, 20]), (10, [10]), (0, []), (99, [10, 20, 30])]
)
def test_rewind_drops_later_rows(tmp_path, step, kept):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, is_writer=True)
    for number in (10, 20, 30):
        log.append({"step": number, "loss": 1.5})
    log.rewind(step)
    assert [row["step"] for row in rows_of(path)] == kept
    log.append({"step": step + 1})
    assert [row["step"] for row in rows_of(path)] == [*kept, step + 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


TORN = [
    b'{"step": 3', b'{"step": 30, "lo', b"\0\0\0\0", b"[1, 2", b"7", b'{"loss": 1}', b'"step"', b'{"step": "3"}',
    b'{"step": null}', b'{"step": 3, "x": "\xff\xfe"}', b"\x80\x81\n\xff\n", b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("torn", TORN)
def test_rewind_drops_a_torn_line_and_says_so_once(tmp_path, torn, caplog):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, is_writer=True)
    for number in (10, 20):
        log.append({"step": number})
    with path.open("ab") as file:
        file.write(torn)
    log.rewind(25)
    assert [record.message for record in caplog.records] == [
        f"{path}: dropped {torn.count(10) or 1} line{'s' * (torn.count(10) > 1)}, torn or damaged"
    ]
    log.append({"step": 30})
    assert [row["step"] for row in rows_of(path)] == [10, 20, 30]


def test_rewind_keeps_a_whole_last_line_without_its_newline(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}')
    log = JsonlLog(path, is_writer=True)
    log.rewind(20)
    log.append({"step": 30})
    assert [row["step"] for row in rows_of(path)] == [10, 20, 30]


def test_rewind_without_a_file_does_nothing(tmp_path):
    JsonlLog(tmp_path / "log.jsonl", is_writer=True).rewind(10)
    assert not (tmp_path / "log.jsonl").exists()


def test_rows_wait_in_memory_while_the_disk_is_full(tmp_path, monkeypatch, caplog):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, is_writer=True)
    log.append({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "append", full_disk)
        for step in (2, 3, 4):
            log.append({"step": step})
        assert [record.message.split(".jsonl: ")[1].split(".")[0] for record in caplog.records] == [
            "No space left on device"
        ]
        assert [row["step"] for row in rows_of(path)] == [1]
    log.append({"step": 5})
    log.close()
    assert [row["step"] for row in rows_of(path)] == [1, 2, 3, 4, 5]
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "append", full_disk)
        log.append({"step": 6})
        log.close()
    assert "The log lacks its last 1 row" in caplog.text and len(caplog.records) == 3


def full_disk(path, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
