"""YAML run files: what they may hold, what wins over them, and that a run's own file repeats it."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

import ds_train
from data_tools.base.errors import UserError
from ds_train.checkpoints.state import TrainState
from ds_train.config.deepspeed_json import default_json
from ds_train.config.flags import parse_flags
from ds_train.config.run_file import as_run_file
from ds_train.config.trainer_flags import ModelFlags, OverrideFlags, RunFlags
from ds_train.phases import pptrain
from ds_train.ranks.signals import ExitCode
from ds_train.ranks.world import World
from ds_train.run.fingerprints import git_state, versions
from ds_train.run.record import LaunchRecord, record_exit
from tests.support import tiny
from tests.support.checkpoints import LAYOUT
from tests.support.launching import REPOSITORY

GROUPS = (RunFlags, ModelFlags, OverrideFlags)
BATCH_AND_RATE = "--global_batch 8 --micro_batch 2 --lr 2e-3".split()


@pytest.fixture
def parsed(tmp_path: Path):
    """Parse a run file's text and more arguments: all flags by name, and where they come from."""

    def parse(text: str, *arguments: str):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        groups, sources = parse_flags(*GROUPS, description="", argv=["--config", str(path), *arguments])
        return {name: value for group in groups for name, value in asdict(group).items()}, sources

    return parse


def test_values_are_what_they_look_like(parsed) -> None:
    flags, _ = parsed(
        "scratch_dir: /data/with space  # a comment\nlr: 1e-4\nmixed_precision: no\nsync_save: true\n"
        "strict_layout: false\nseed: 0\nrun_name:\naccept_change: [seed, optimizer]\nresume: none\nweight_decay: .1\n"
    )
    expected = {
        "scratch_dir": "/data/with space", "lr": 1e-4, "mixed_precision": "no", "sync_save": True,
        "strict_layout": False, "seed": 0, "run_name": None, "accept_change": ["seed", "optimizer"],
        "resume": "none", "weight_decay": 0.1, "save_every": None,
    }  # fmt: skip
    assert {name: flags[name] for name in expected} == expected


def test_the_command_line_wins_and_sources_are_shown(parsed) -> None:
    flags, sources = parsed("scratch_dir: /data\nlr: 0.1\nseed: 5\n", "--seed=7", "--zero_stage", "2")
    assert (flags["scratch_dir"], flags["lr"], flags["seed"], flags["zero_stage"]) == ("/data", 0.1, 7, 2)
    path = flags["config"]
    assert sources == {
        "scratch_dir": path, "lr": path, "seed": "command line", "zero_stage": "command line", "config": "command line",
    }  # fmt: skip


def test_the_deepspeed_json_may_be_inside(parsed) -> None:
    flags, _ = parsed("scratch_dir: /data\ndeepspeed_config:\n  bf16: {enabled: true}\n  optimizer:\n    lr: 1e-4\n")
    assert json.loads(flags["deepspeed_config"]) == {"bf16": {"enabled": True}, "optimizer": {"lr": 1e-4}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scratch_dir: /data\nleaning_rate: 1", "'leaning_rate' is no flag; did you mean lr?"),
        ("scratch_dir: /data\nsave_evry: 1", "did you mean save_every?"),
        ("colour: red", "'colour' is no flag."),
        ("optimizer: {params: {lr: 1}}", "'optimizer' is no flag; DeepSpeed's settings go under deepspeed_config."),
        ("lr: fast", "run.yaml: argument --lr: invalid float value: 'fast'"),
        ("lr: 1\nseed: 2\nlr: 3", "run.yaml: lr is given twice, in lines 1 and 3; keep one."),
        ("lr: {a: 1}", "lr is a mapping, expected one value"),
        ("lr: [3e-4, 1e-3]", "lr is a list, expected one value"),
        ("run_name: [x]", "run_name is a list, expected one value"),
        ("seed: 1e5", "argument --seed: invalid int value: '1e5'"),
        ("strict_layout: maybe", "expected true or false, got 'maybe'. See"),
        ("config: other.yaml", "'config' is no flag"),
        ("- lr", "holds no flags"),
        ("", "holds no flags"),
        ("lr: [1", "is not valid YAML"),
        ("seed: 1", "scratch_dir"),  # required, and in neither place
    ],
)
def test_mistakes_are_named(parsed, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_values_are_taken_as_they_are_written(parsed) -> None:
    flags, _ = parsed("scratch_dir: 007\nrun_name: 1e3\nlr: 1e-3\naccept_change: [lr, 12]\nstop_step: 5")
    assert (flags["scratch_dir"], flags["run_name"]) == ("007", "1e3")
    assert flags["lr"] == 1e-3 and flags["accept_change"] == ["lr", "12"] and flags["stop_step"] == 5
    assert parsed("scratch_dir: /data\naccept_change: []")[0]["accept_change"] is None


def test_all_names_that_are_no_flags_are_reported_at_once(parsed) -> None:
    with pytest.raises(UserError, match=r"(?s)^2 problems:.*'colour' is no flag\..*'save_evry' is no flag; did you"):
        parsed("scratch_dir: /data\ncolour: red\nsave_evry: 1")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"--config /nowhere\.yaml cannot be read"):
        parse_flags(*GROUPS, description="", argv=["--config", "/nowhere.yaml"])


def test_a_written_file_gives_the_same_flags(parsed) -> None:
    given = "scratch_dir: /data\nmixed_precision: no\nlr: 1e-05\nrun_name: 'null'\nresume: auto\nseed: 12"
    groups, sources = parse_flags(
        *GROUPS, description="", argv=["--scratch_dir", "/d: # 'x'", "--run_name", "no", "--lr", "1e-5"]
    )
    text = as_run_file(groups, {"bf16": {"enabled": False}, "x": 1e-8}, sources, remarks=["one", "two"])
    again, _ = parsed(text)
    first = {name: value for group in groups for name, value in asdict(group).items()}
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"config", "deepspeed_config"}
    assert json.loads(again["deepspeed_config"]) == {"bf16": {"enabled": False}, "x": 1e-8}
    assert text.startswith("# one\n# two\n") and "lr: 1.0e-05  # command line\n" in text
    flags, _ = parsed(given)
    assert flags["run_name"] == "null"


def test_print_config_shows_all_and_trains_nothing(tiny_scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*tiny.flags(tiny_scratch, precision=None), *BATCH_AND_RATE, "--run_name", "printed"]
    assert pptrain.main([*argv, "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# run\n") and "lr: 0.002  # command line" in shown and "seed: 1337  # default" in shown
    assert '\n#   "train_batch_size": 8' in shown
    assert not (tiny_scratch / "printed" / "logs").exists()
    path = tiny_scratch / "printed.yaml"
    path.write_text(shown)
    for line in (
        f"data_dir: {next((tiny_scratch / 'data' / 'nl_splits').iterdir())}  # default", "save_every: 200  # default",
        "warmup_steps: 4  # command line", "weight_decay: 0.1  # default JSON", "mixed_precision: bf16  # default JSON",
        "max_lookahead: 8  # default", f"# default: {default_json('pptrain')}; flags above win",
    ):  # fmt: skip
        assert f"\n{line}\n" in shown, line
    again = pptrain.prepare(["--config", str(path)], World(0, 0, 1))
    assert again.inputs.engine == pptrain.prepare(argv, World(0, 0, 1)).inputs.engine


def test_a_run_directory_keeps_what_repeats_the_run(tiny_scratch: Path, tmp_path: Path) -> None:
    argv = [*tiny.flags(tiny_scratch, precision=None), *BATCH_AND_RATE, "--resume", "none"]
    first = pptrain.prepare(argv, World(0, 0, 1))
    settings = LaunchRecord(first.all_flags, first.sources, first.inputs.engine)
    for step in (0, 5):
        settings.record(tmp_path, World(0, 0, 1), TrainState(**LAYOUT, step=step), 21_248)
    again = pptrain.prepare(["--config", str(tmp_path / "run.yaml")], World(0, 0, 1))
    assert again.inputs.engine == first.inputs.engine
    for group, other in zip(first.all_flags, again.all_flags, strict=True):
        for name, value in asdict(group).items():
            if name not in ("config", "resume", "deepspeed_config"):  # of one launch; and the JSON's text for its path
                assert getattr(other, name) == value, name
    assert json.loads((tmp_path / "deepspeed.json").read_text()) == first.inputs.engine.effective
    launches = [json.loads(line) for line in (tmp_path / "launches.jsonl").read_text().splitlines()]
    assert [launch["step"] for launch in launches] == [0, 5]
    assert launches[0]["versions"] == versions() and launches[0]["ranks"] == 1


def test_how_a_launch_ended_is_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for code in (ExitCode.PREEMPTED, ExitCode.FINISHED):
        record_exit(tmp_path, 7, code)
    exits = [json.loads(line) for line in (tmp_path / "exits.jsonl").read_text().splitlines()]
    assert [(row["step"], row["exit_code"], row["meaning"]) for row in exits] == [
        (7, 85, "preempted"),
        (7, 0, "finished"),
    ]
    record_exit(tmp_path / "missing", 7, ExitCode.ERROR)
    assert "the exit code is not recorded" in caplog.text


def test_a_run_file_means_the_same_from_any_directory(
    tiny_scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_scratch.parent)
    (tmp_path / "pythia-160m").mkdir()  # a preset all the same
    argv = [
        *tiny.flags(Path(tiny_scratch.name), precision=None),
        "--global_batch",
        "8",
        "--micro_batch",
        "2",
        "--resume",
        "none",
    ]
    first = pptrain.prepare([*argv, "--model_name", "pythia-160m", "--seq_len", "64"], World(0, 0, 1))
    settings = LaunchRecord(first.all_flags, first.sources, first.inputs.engine)
    settings.record(tmp_path, World(0, 0, 1), TrainState(**LAYOUT), 0)
    monkeypatch.chdir(tmp_path)
    again = pptrain.prepare(["--config", "run.yaml"], World(0, 0, 1))
    assert again.inputs.run_flags.scratch_dir == str(tiny_scratch)
    assert again.inputs.model_flags.tokenizer == str(tiny_scratch / "tokenizer")
    assert again.inputs.model_flags.model_name == "pythia-160m"
    assert again.inputs.run_directory == tiny_scratch.parent / first.inputs.run_directory


def test_the_git_state_is_that_of_the_checkout() -> None:
    def head() -> str:
        return subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True).stdout

    expected = head().strip() if (REPOSITORY / ".git").exists() else ""
    assert git_state().split(" with ")[0] == expected


def test_the_git_state_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``git status`` writes an index with fresh times; killed meanwhile it leaves a lock that stops later commits."""
    package = tmp_path / "ds_train" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    os.utime(package, (1e9, 1e9))  # so that the index has something to refresh
    before = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(ds_train, "__file__", str(package))
    assert len(git_state()) == 40
    assert (tmp_path / ".git" / "index").read_bytes() == before
