"""Which checkpoints may be continued: the examples of an external generator, what is transferred and frozen."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.resume import adapted_state
from ds_train.checkpoints.state import TrainState

STEP = Path("step_00000007")
FIRST, EDITED = "1" * 64, "2" * 64


def state(**fingerprints: str) -> TrainState:
    return TrainState(
        seed=1, world_size=1, micro_batch=4, grad_accum=1, global_batch=4, zero_stage=1, precision="fp32",
        fingerprints={"generator": "theirs:Generator 1", "gradient_sums": "fp32", **fingerprints},
    )  # fmt: skip


def adapted(saved: TrainState, current: TrainState, *accepted: str) -> TrainState:
    return adapted_state(saved, current, STEP, strict_layout=False, accepted=accepted)


def test_other_examples_are_refused_unless_accepted(caplog: pytest.LogCaptureFixture) -> None:
    saved, current = state(generator_examples=FIRST), state(generator_examples=EDITED)
    assert adapted(saved, state(generator_examples=FIRST)).fingerprints["generator_examples"] == FIRST
    with pytest.raises(
        UserError, match=r"generator_examples: saved another one, .* --accept_change generator_examples"
    ):
        adapted(saved, current)
    with caplog.at_level(logging.WARNING):
        assert adapted(saved, current, "generator_examples").fingerprints["generator_examples"] == EDITED
    assert "--accept_change generator_examples" in caplog.text


def test_checkpoints_that_know_no_examples_learn_them() -> None:
    former = replace(state(), step=7)
    continued = adapted(former, state(generator_examples=EDITED))
    assert continued.step == 7 and continued.fingerprints["generator_examples"] == EDITED
    with pytest.raises(UserError, match="generator_examples"):
        adapted(continued, state(generator_examples=FIRST))


def test_what_was_transferred_stays_and_checkpoints_of_before_transferred_all() -> None:
    everything = state(transfer="all", freeze="nothing")
    assert adapted(state(), everything).fingerprints["transfer"] == "all"
    with pytest.raises(UserError, match=r"transfer: saved all, now mlp\)"):
        adapted(state(), state(transfer="mlp", freeze="nothing"))
    assert adapted(everything, state(transfer="mlp", freeze="nothing"), "transfer").fingerprints["transfer"] == "mlp"


@pytest.mark.parametrize("name", ["freeze", "no_decay"])
@pytest.mark.parametrize("before", ["nothing", "norms"])
def test_what_an_optimizer_is_arranged_by_cannot_change_even_if_accepted(name: str, before: str) -> None:
    saved = state(**({name: before} if before != "nothing" else {}))
    for accepted in ([], [name]):
        with pytest.raises(
            UserError, match=rf"another --{name} \(saved {before}, now head\).*--pptrain_checkpoint {STEP}"
        ):
            adapted(saved, state(**{name: "head"}), *accepted)
    assert adapted(saved, state(**{name: before})).fingerprints[name] == before


def test_a_checkpoint_that_is_older_than_a_flag_had_its_default() -> None:
    saved, former = state(), {"loss": "weighted"}
    kept = adapted_state(saved, state(loss="weighted"), STEP, strict_layout=False, accepted=(), former=former)
    assert kept.fingerprints["loss"] == "weighted"
    with pytest.raises(UserError, match=r"loss: saved weighted, now answer.*--accept_change loss"):
        adapted_state(saved, state(loss="answer"), STEP, strict_layout=False, accepted=(), former=former)
