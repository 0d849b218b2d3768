"""What is resumable survives a checkpoint file."""

import dataclasses
import json
import random

import pytest
import torch

from data_tools.base.errors import UserError
from data_tools.samples.samplers import Cursor
from ds_train.checkpoints.rank_rng import rng_state, set_rng_state
from ds_train.checkpoints.save import read_state
from ds_train.checkpoints.state import TrainState
from tests.support.bad_values import Touching
from tests.support.checkpoints import full_state


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


def test_the_state_as_json_lacks_only_the_random_states():
    state = full_state()
    values = json.loads(state.to_json())
    restored = TrainState.from_client_state({"ds_train": values | {"rng": []}}, "state.json")
    assert restored == dataclasses.replace(state, rng=[]) and "rng" not in values
    assert state.to_json().count("\n") == len(values) + 2, "a line for each field"


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


@pytest.mark.parametrize(("stage", "num_model", "num_optimizer"), [(0, 1, 0), (1, 1, 2), (2, 1, 2), (3, 2, 2)])
def test_files_of_every_rank_must_be_there(tmp_path, stage, num_model, num_optimizer):
    """DeepSpeed would load the others, and leave the optimizer as new."""
    saved = dataclasses.replace(full_state(), zero_stage=stage, world_size=2)
    names = [f"{kind}_{rank}_{kind}_states.pt" for kind, ranks in (("model", num_model), ("optim", num_optimizer))
             for rank in range(ranks)]  # fmt: skip
    for name in names:
        torch.save(saved.to_client_state(), tmp_path / name)
    assert read_state(tmp_path).step == saved.step
    for name in names[1:]:
        (tmp_path / name).rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=f"{num_model} .*and {num_optimizer}. Restore the missing files"):
            read_state(tmp_path)
        (tmp_path / "elsewhere").rename(tmp_path / name)


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    torch.save({"module": {}, "ds_train": Touching(tmp_path / "ran")}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match=r"mp_rank_00_model_states.pt holds more than tensors and plain values"):
        read_state(tmp_path)
    assert not (tmp_path / "ran").exists()
