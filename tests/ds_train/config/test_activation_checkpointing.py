"""Activation checkpointing in the JSON and as a flag: ours, not DeepSpeed's own."""

from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT

from data_tools.base.errors import UserError
from ds_train.config.flags import parse_flags
from ds_train.config.run_file import as_run_file
from ds_train.config.trainer_flags import GROUPS, OverrideFlags
from tests.support.engine_configs import BASE, changed, resolve


def _parsed(*argv: str) -> tuple[OverrideFlags, str]:
    """The flags that override the JSON, and all flags as a run file."""
    all_flags, sources = parse_flags(*GROUPS["pptrain"], description="", argv=["--scratch_dir", "/d", *argv])
    return all_flags[-1], as_run_file(all_flags, {}, sources, remarks=[])


@pytest.mark.parametrize(
    ("in_json", "flag", "every"), [(None, None, 0), (2, None, 2), (0, None, 0), (None, 1, 1), (2, 3, 3), (2, 0, 0)]
)
def test_the_flag_wins_over_the_json(in_json: int | None, flag: int | None, every: int) -> None:
    config = BASE if in_json is None else changed(("activation_checkpointing.every", in_json))
    resolved = resolve(config, activation_checkpointing=flag)
    assert resolved.recompute_every == every
    if flag is not None:
        assert f"--activation_checkpointing {flag} overrides activation_checkpointing.every" in "".join(
            resolved.overrides
        )


def test_deepspeed_does_not_get_it() -> None:
    """The same block would configure its own."""
    resolved = resolve(BASE, activation_checkpointing=2)
    assert "activation_checkpointing" not in resolved.deepspeed
    assert resolved.effective["activation_checkpointing"] == {"every": 2}
    assert resolved.flag_values()["activation_checkpointing"] == 2


@pytest.mark.parametrize("key", sorted(ACT_CHKPT_DEFAULT))
def test_settings_of_deepspeeds_own_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"activation_checkpointing.{key} is refused: .*\.$"):
        resolve(changed((f"activation_checkpointing.{key}", True)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("every", -1, "every is -1, expected a whole number"), ("every", True, "every is True"),
        ("every", 1.5, "every is 1.5"), ("every", "1", "every is '1'"),
        ("evry", 1, "activation_checkpointing.evry.*did you mean every[?]"),
    ],
)  # fmt: skip
def test_bad_values_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(changed((f"activation_checkpointing.{key}", value)))


def test_without_a_number_it_means_every_layer(tmp_path: Path) -> None:
    for argv, expected in (([], None), (["--activation_checkpointing"], 1), (["--activation_checkpointing", "3"], 3)):
        flags, run_file = _parsed(*argv, "--log_every", "5")
        assert flags.activation_checkpointing == expected
        (tmp_path / "run.yaml").write_text(run_file)
        assert _parsed("--config", str(tmp_path / "run.yaml"))[0].activation_checkpointing == expected
    with pytest.raises(UserError, match=r"--activation_checkpointing is -1, expected a number in \[0"):
        _parsed("--activation_checkpointing=-1")
