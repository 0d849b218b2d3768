"""The schema of run files accepts what the trainers accept, and refuses what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_tools.base.errors import UserError
from ds_train.config.flags import flags_known_to, parse_flags
from ds_train.config.run_file import as_run_file, read_mapping
from ds_train.config.schema import flags_of_phase, run_file_schema
from ds_train.config.trainer_flags import GROUPS
from tests.support.json_schema import faults


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return run_file_schema()


@pytest.mark.parametrize("phase", GROUPS)
def test_a_file_that_a_run_writes_is_valid(phase: str, schema: dict[str, Any], tmp_path: Path) -> None:
    argv = ["--scratch_dir", "/d", "--lr", "3e-4", "--eval_at", "1", "2", "--run_name", "007", "--sync_save"]
    all_flags, sources = parse_flags(*GROUPS[phase], description="", argv=argv)
    (tmp_path / "run.yaml").write_text(as_run_file(all_flags, {"train_batch_size": 8}, sources, remarks=[]))
    content = read_mapping(tmp_path / "run.yaml", "run.yaml")
    assert content["run_name"] and faults(content, schema) == []


@pytest.mark.parametrize("phase", GROUPS)
def test_it_has_each_flag_that_a_file_may_hold_with_its_help(phase: str) -> None:
    known = flags_known_to(GROUPS[phase]).keys() - {"config", "debug"}
    found = flags_of_phase(phase)
    assert found.keys() == known
    assert all(value["description"] for value in found.values())
    assert "%%" not in str(found)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("lerning_rate: 1", "/lerning_rate is unknown"),
        ("lr: [1, 2]", "/lr"),
        ("lr: 0", "/lr: 0 is beyond"),
        ("seed: 1.5", "/seed"),
        ("tf32: 3", "/tf32"),
        ("init: random", "/init: 'random' is none of"),
        ("no_decay: [norms, heads]", "/no_decay"),
        ("zero_stage: 4", "/zero_stage: 4 is beyond 3"),
        ("mixin_percent: 1.5", "/mixin_percent: 1.5 is beyond 1"),
        ("deepspeed_config: {bf17: {}}", "/deepspeed_config/bf17"),
        ("config: other.yaml", "/config is unknown"),
        ("curr_window: 100\nmixin_percent: 0.1", "is unknown"),  # flags of both phases
    ],
)
def test_what_a_trainer_refuses_is_refused(text: str, place: str, schema: dict[str, Any], tmp_path: Path) -> None:
    assert place in "\n".join(faults(yaml.safe_load(text), schema))
    if "deepspeed_config" not in text:  # whose keys are checked later
        (tmp_path / "run.yaml").write_text(text)
        for groups in GROUPS.values():
            with pytest.raises(UserError):
                parse_flags(
                    *groups, description="", argv=["--scratch_dir", "/d", "--config", str(tmp_path / "run.yaml")]
                )
