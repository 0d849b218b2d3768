"""Every flag has a role, and what follows from roles: fingerprints, run files, audit."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train.audit import _is_neutral
from ds_train.checkpoints.state import TrainState
from ds_train.config.flags import AT_START, compared_values, flag, former_values, is_compared, parse_flags, role_of
from ds_train.config.json_keys import KNOWN_KEYS
from ds_train.config.run_file import as_run_file
from ds_train.config.trainer_flags import GROUPS
from ds_train.phases import pptrain, pretrain
from ds_train.ranks.world import World
from ds_train.run.assembly import fresh_state
from tests.support import tiny

FLAGS = [(phase, item) for phase, groups in GROUPS.items() for group in groups for item in fields(group)]
LAUNCHES = {"pptrain": (pptrain, []), "pretrain": (pretrain, ["--total_steps", "8", "--pptrain_checkpoint", "none"])}


@dataclass(frozen=True)
class OneMore:
    """Flags of another topic."""

    is_new: bool = flag(True, "decides what is computed", "trajectory")


@pytest.fixture(scope="module", params=GROUPS)
def phase(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def fingerprints(phase: str, tiny_scratch: Path) -> dict[str, str]:
    """What a resumed run must agree with, had it a further group of flags."""
    module, flags = LAUNCHES[phase]
    checked = module.prepare([*tiny.flags(tiny_scratch), "--global_batch", "8", *flags], World(0, 0, 1))
    return fresh_state(checked.inputs, checked.make_setup(), [*checked.all_flags, OneMore()]).fingerprints


def _wrong(is_wrong: Callable[[str, Field], bool]) -> list[str]:
    """Names of the flags for which something is wrong."""
    return [f"{phase} --{item.name}" for phase, item in FLAGS if is_wrong(phase, item)]


def test_roles_and_places_of_comparison_fit_together() -> None:
    def is_wrong(_: str, item: Field) -> bool:
        role, through, json_key = role_of(item), item.metadata["through"], item.metadata["json_key"]
        is_unknown_key = json_key is not None and json_key.split(".")[0] not in KNOWN_KEYS
        return is_unknown_key or (through is not None and (role != "trajectory" or json_key is not None))

    assert _wrong(is_wrong) == []


def test_what_decides_a_trajectory_is_compared_where_it_says(phase: str, fingerprints: dict[str, str]) -> None:
    """`test_elastic.py` holds that another value refuses a resume."""
    held = {AT_START, *fingerprints, *(field.name for field in fields(TrainState))}

    def is_wrong(of_phase: str, item: Field) -> bool:
        through = item.metadata["through"]
        in_itself = is_compared(item) and item.name not in fingerprints
        return of_phase == phase and (in_itself or (through is not None and through not in held))

    assert _wrong(is_wrong) == []
    assert fingerprints["is_new"] == "True", "flags of every group are compared"


def test_run_files_hold_all_but_what_concerns_one_start() -> None:
    lines = defaultdict(set)
    for phase, groups in GROUPS.items():
        all_flags, sources = parse_flags(*groups, description="", argv=["--scratch_dir", "/data"])
        text = as_run_file(all_flags, {}, sources, remarks=[])
        lines[phase] = {line.split(":")[0] for line in text.splitlines()}
    assert _wrong(lambda phase, item: (item.name in lines[phase]) == (role_of(item) == "launch")) == []


def test_audit_shows_what_decides_a_trajectory() -> None:
    def is_wrong(_: str, item: Field) -> bool:
        is_shown = not _is_neutral(item)
        return (is_shown and role_of(item) != "trajectory") or (is_compared(item) and not is_shown)

    assert _wrong(is_wrong) == []


def test_saving_and_logging_are_no_differences() -> None:
    neutral = {item.name for _, item in FLAGS if _is_neutral(item)}
    assert {"sync_save", "log_every", "keep_last", "run_name", "num_workers", "lr"} <= neutral
    assert not {"seed", "seq_len", "mixin_percent", "curr_window", "train_answer"} & neutral


@pytest.mark.parametrize(
    ("phase", "names"),
    [
        ("pptrain", "train_answer accuracy curr_window curr_threshold curr_check_every stage_step"),
        ("pretrain", "total_steps c4_order mixin_percent mixin_schedule mixin_end mixin_pack mixin_loss"),
    ],
)
def test_checkpoints_of_before_have_the_same_fingerprints(phase: str, names: str) -> None:
    """A newer flag has its default as its former value, or no checkpoint of before resumes."""
    all_flags, _ = parse_flags(*GROUPS[phase], description="", argv=["--scratch_dir", "/data"])
    found = compared_values(all_flags)
    assert {*names.split()} <= {*found}
    assert found == former_values(GROUPS[phase])


def test_values_are_of_the_fields_kinds() -> None:
    argv = "--scratch_dir /d --seed 7 --sync_save --keep-last 2 --hang_timeout_s 5 --accept_change lr seed".split()
    (run, *_), sources = parse_flags(*GROUPS["pptrain"], description="", argv=[*argv, "--deterministic", "false"])
    assert (run.seed, run.sync_save, run.keep_last, run.hang_timeout_s) == (7, True, 2, 5.0)
    assert run.accept_change == ["lr", "seed"] and run.deterministic is False and run.resume == "auto"
    assert sources["seed"] == "command line"


def test_a_list_of_numbers_is_read_from_the_command_line_and_a_run_file(tmp_path: Path) -> None:
    groups = GROUPS["pptrain"]
    all_flags, sources = parse_flags(*groups, description="", argv="--scratch_dir /d --eval_at 1 2 40".split())
    (tmp_path / "run.yaml").write_text(as_run_file(all_flags, {}, sources, remarks=[]))
    (again, *_), _ = parse_flags(*groups, description="", argv=["--config", str(tmp_path / "run.yaml")])
    assert all_flags[0].eval_at == again.eval_at == [1, 2, 40]
    for values, message in (("1 x", "invalid int value: 'x'"), ("1 0", r"--eval_at is 0, expected a number in \[1")):
        with pytest.raises(UserError, match=message):
            parse_flags(*groups, description="", argv=f"--scratch_dir /d --eval_at {values}".split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", "x"], "invalid int value: 'x'"),
        (["--sync_save", "perhaps"], "expected true or false, got 'perhaps'"),
        (["--init", "random"], "invalid choice: 'random'"),
        (["--accuracy"], "expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
        (["--lerning_rate", "1"], "unknown flag --lerning_rate; did you mean --lr"),
    ],
)
def test_bad_values_are_one_message(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_flags(*GROUPS["pptrain"], description="", argv=["--scratch_dir", "/data", *argv])


def test_only_the_scratch_directory_must_be_given() -> None:
    assert {item.name for _, item in FLAGS if item.default is MISSING} == {"scratch_dir"}
    with pytest.raises(UserError, match="required: --scratch_dir"):
        parse_flags(*GROUPS["pretrain"], description="", argv=[])
