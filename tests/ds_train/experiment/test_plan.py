"""The experiment as steps: that its conditions differ in what is compared and nothing else, and what is refused."""

import json
import os
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from data_tools import build_data_splits, build_pretrain
from data_tools.base.completion import parser_of
from data_tools.base.errors import UserError
from data_tools.base.version import SHOWN
from ds_train import evaluate
from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import GROUPS
from ds_train.experiment import __main__, plan
from ds_train.experiment.conditions import BUILT_IN, chosen
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.forecast import check_and_forecast
from ds_train.experiment.steps import Step
from tests.support.experiments import PPTRAINED, SHIPPED, TRAINING, experiment, write
from tests.support.paths import REPOSITORY
from tests.support.runs import pretrain_rows, write_run

ALL = [*BUILT_IN]


def steps(config: Path, launcher: str = "start {}", conditions: list[str] | None = None) -> dict[str, Step]:
    """Steps by name."""
    return {step.name: step for step in experiment(config, Path("/scratch"), launcher, conditions).steps()}


@pytest.fixture
def after_pptrain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that pre-pretraining has ended."""
    monkeypatch.setattr(plan, "spent_by", lambda run: PPTRAINED)
    monkeypatch.setattr(plan.Records, "is_done", lambda self, step: step.name.startswith("pptrain"))


def flags(step: Step) -> dict[str, Any]:
    """All flags that a trainer's step gives it, and the defaults of the others."""
    phase = step.command[1]
    parsed, _ = parse_flags(*GROUPS[phase], description="", argv=list(step.command[2:]))
    return {item.name: getattr(group, item.name) for group in parsed for item in fields(group)}


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one[name], other[name]) for name in one if one[name] != other[name] and name != "run_name"}


def test_conditions_differ_in_what_is_compared_only(tmp_path: Path, after_pptrain: None) -> None:
    found = steps(write(tmp_path), conditions=ALL)
    a, b, c, d, longer, n = (flags(found[f"{name}/seed_1337"]) for name in ALL)
    weights = {"pptrain_checkpoint": ("/scratch/pptrain/seed_1337", "none"), "model_name": (None, "pythia-14m")}
    no_mix = {"mixin_percent": (0.3, 0.0), "mixin_schedule": ("linear", "constant"), "mixin_end": (0.1, None)}
    assert differing(a, c) == weights
    assert differing(c, b) == differing(a, d) == no_mix
    assert differing(d, b) == weights
    assert differing(a, n) == {"pptrain_checkpoint": ("/scratch/pptrain/seed_1337", "/scratch/pptrain_on_c4/seed_1337")}
    # 51.2 PFLOPs of pre-pretraining are 500 more steps of 8 × 128 tokens.
    assert differing(b, longer) == {"total_steps": (50, 550), "pack_dir": (None, "/scratch/data/c4_packed_4400")}
    assert (c["lr"], c["total_steps"], json.loads(c["deepspeed_config"])) == (1e-3, 50, {"train_batch_size": 8})
    assert {c["c4_order"], c["seed"], b["seed"]} == {"seed", 1337}


def test_a_first_phase_on_c4_is_pre_pretraining_on_other_documents(tmp_path: Path, after_pptrain: None) -> None:
    """As many tokens, with its optimizer, schedule and batch."""
    found = steps(write(tmp_path), conditions=["A", "B+", "N"])
    pptrain, on_c4 = flags(found["pptrain/seed_1337"]), flags(found["pptrain_on_c4/seed_1337"])
    shared = {name: pptrain[name] for name in pptrain if name in on_c4}
    assert set(differing(shared, on_c4)) == {"global_batch", "eval_every"}
    assert on_c4["total_steps"] * on_c4["global_batch"] * 128 == PPTRAINED.tokens
    assert (on_c4["global_batch"], on_c4["mixin_percent"], on_c4["pptrain_checkpoint"]) == (16, 0.0, "none")
    assert on_c4["pack_dir"] == "/scratch/data/c4_second_4000"
    packs = {step.product.name: step.command for name, step in found.items() if name.startswith("pack")}
    halves = {name: command[command.index("--half") + 1] for name, command in packs.items()}
    assert halves == {"c4_packed": "first", "c4_packed_4400": "first", "c4_second_4000": "second"}
    assert "--deepspeed_config" not in found["pptrain/seed_1337"].command  # the JSON is CONFIG's own


def test_the_default_json_of_a_first_phase_on_c4_is_pptrains(tmp_path: Path, after_pptrain: None) -> None:
    found = steps(write(tmp_path, training=TRAINING), conditions=["N"])
    assert Path(flags(found["pptrain_on_c4/seed_1337"])["deepspeed_config"]).name == "pptrain.json"


def test_a_finished_pre_pretraining_without_a_checkpoint_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.Records, "is_done", lambda self, step: True)
    with pytest.raises(UserError, match=r"has no checkpoint any more.* delete /scratch/steps/pptrain/seed_1337\.json"):
        steps(write(tmp_path), conditions=["A", "B+"])


def test_lengths_are_left_open_until_pre_pretraining_has_ended(tmp_path: Path) -> None:
    found = steps(write(tmp_path), conditions=["B", "B+", "N"])
    for name in ("B+/seed_1337", "pptrain_on_c4/seed_1337"):
        assert not [word for word in found[name].command if word.startswith("--total_steps")]
    assert [step.name for step in found["B/seed_1337"].needs] == ["splits", "pack"]
    assert "pptrain/seed_1337" in [step.name for step in found["B+/seed_1337"].needs]


def test_pptrain_is_what_a_starts_from(tmp_path: Path) -> None:
    found = steps(write(tmp_path))
    pptrain, c = flags(found["pptrain/seed_1337"]), flags(found["C/seed_1337"])
    assert pptrain["max_steps"] == 100
    assert set(differing({name: pptrain[name] for name in pptrain if name in c}, c)) == {"global_batch", "eval_every"}


def test_order_and_records(tmp_path: Path) -> None:
    config = write(tmp_path, evaluate={"micro_batch": 3}, seeds=[1, 2])
    one, other = (steps(config, launcher) for launcher in ("start {}", "srun -n 2 python ds_train/{}.py"))
    assert list(one) == [
        "splits", "pack",
        *(
            f"{before}{name}/seed_{seed}"
            for seed in (1, 2) for name in ("pptrain", "A", "B", "C") for before in ("", "evaluate/")
        ),
        "report", "compare",
    ]  # fmt: skip
    assert [step.fingerprint for step in one.values()] == [step.fingerprint for step in other.values()]
    assert one["evaluate/A/seed_2"].command[:3] == ["start", "evaluate", "/scratch/A/seed_2"]
    assert "--micro_batch=3" in one["evaluate/A/seed_1"].command
    assert other["A/seed_1"].command[:5] == ["srun", "-n", "2", "python", "ds_train/pretrain.py"]


def drawn(step: Step) -> list[str]:
    """The runs in a report."""
    return [word.removeprefix("/scratch/") for word in step.command[3 : step.command.index("--names")]]


def test_the_report_has_what_earlier_commands_have_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, scratch, done = write(tmp_path, seeds=[1, 2]), Path("/scratch"), set[str]()
    monkeypatch.setattr(plan.Records, "is_done", lambda self, step: step.name in done)

    def report(*names: str, seeds: list[int]) -> list[str]:
        file = ExperimentFile(config, scratch)
        one = plan.Experiment(file, scratch, ["start", "{}"], chosen(file.conditions, [*names]), seeds)
        return drawn(next(step for step in one.steps() if step.name == "report"))

    assert report("D", "B", seeds=[2]) == ["B/seed_2", "D/seed_2", "pptrain/seed_2"]
    done |= {f"evaluate/{name}" for name in ("A/seed_1", "D/seed_1", "A/seed_2")}
    assert report("C", seeds=[1]) == ["A/seed_1", "C/seed_1", "D/seed_1", "pptrain/seed_1"]
    assert report("C", seeds=[2]) == ["A/seed_1", "D/seed_1", "pptrain/seed_1"], "seed 1 has as many, and comes first"
    assert report("B", "C", seeds=[2]) == [f"{name}/seed_2" for name in ("A", "B", "C", "pptrain")]


def test_what_can_be_compared_is(tmp_path: Path) -> None:
    """In the end, with what other processes have by then; and never more than a picture can show."""
    own = {f"x{n}": {"like": "B"} for n in range(9)}
    config, scratch = write(tmp_path, seeds=[1, 2], conditions={"B": None, **own}), tmp_path / "scratch"

    def compared(seeds: list[int], *names: str) -> list[str]:
        file = ExperimentFile(config, scratch)
        one = plan.Experiment(file, scratch, ["start", "{}"], chosen(file.conditions, [*names]), seeds)
        return next((list(step.command[3:]) for step in one.steps() if step.name == "compare"), [])

    whole = ["--experiment", str(scratch), "--out", str(scratch / "comparison")]
    assert compared([1], "B", "x1") == whole and compared([1], "x1", "x2") == []
    write_run(scratch / "B" / "seed_2", [], [{"step": step} for step in range(3)])
    assert compared([1], "x1") == [] and compared([2], "x1") == whole
    for name in own:
        write_run(scratch / name / "seed_2", [], [{"step": step} for step in range(3)])
    assert compared([2], "B", "x1") == [*whole, "--conditions", "x1"]


def test_a_seed_is_all_that_differs_between_seeds(tmp_path: Path, after_pptrain: None) -> None:
    found = steps(write(tmp_path, seeds=[1, 2]), conditions=ALL)
    for name in ("pptrain", "pptrain_on_c4", *ALL):
        one, other = (flags(found[f"{name}/seed_{seed}"]) for seed in (1, 2))
        assert set(differing(one, other)) - {"pptrain_checkpoint"} == {"seed"}
    assert [name for name in found if name.startswith("pack")] == ["pack", "pack c4_packed_4400", "pack c4_second_4000"]


def test_conditions_of_ones_own(tmp_path: Path, after_pptrain: None) -> None:
    own = {
        "B": None,
        "mix-5": {"like": "C", "title": "5 % mixed in", "pretrain": {"mixin_percent": 0.05}},
        "dose": {"like": "A", "pptrain": {"max_steps": 10}},
        "dose-mix-5": {"like": "dose", "pretrain": {"mixin_percent": 0.05}},
        "longer": {"like": "B", "pretrain": {"total_steps": 100}},
    }
    found = steps(write(tmp_path, conditions=own))
    b, c, mix = (flags(found[f"{n}/seed_1337"]) for n in ("B", "mix-5", "dose-mix-5"))
    assert c["mixin_percent"] == mix["mixin_percent"] == 0.05 and b["mixin_percent"] == 0
    assert flags(found["pptrain_dose/seed_1337"])["max_steps"] == 10
    assert mix["pptrain_checkpoint"] == "/scratch/pptrain_dose/seed_1337"
    assert "pptrain/seed_1337" not in found and "5 % mixed in" in found["mix-5/seed_1337"].title
    assert flags(found["longer/seed_1337"])["pack_dir"] == "/scratch/data/c4_packed_800"


def test_a_varied_flag_changes_pretraining_only(tmp_path: Path, after_pptrain: None) -> None:
    """Each condition has each value; the pre-pretraining and all data are the same."""
    found = steps(write(tmp_path, vary={"lr": [1e-4, 5e-4]}, seeds=[1]))
    runs = [name for name, step in found.items() if step.run]
    assert runs == ["pptrain/seed_1", *(f"{name}/lr={lr}/seed_1" for name in "ABC" for lr in (0.0001, 0.0005))]
    one, other = (flags(found[f"A/lr={lr}/seed_1"]) for lr in (0.0001, 0.0005))
    assert differing(one, other) == {"lr": (1e-4, 5e-4)} and one["run_name"] == "A/lr=0.0001/seed_1"
    assert [name for name in found if name.startswith(("pack", "splits"))] == ["splits", "pack"]
    assert found["evaluate/A/lr=0.0001/seed_1"].product == Path("/scratch/evaluations/A_lr=0.0001_seed_1.json")
    assert drawn(found["report"]) == [*(f"{name}/lr=0.0001/seed_1" for name in "ABC"), "pptrain/seed_1"]


def test_the_report_draws_the_values_that_compare_picks(tmp_path: Path) -> None:
    config, scratch = write(tmp_path, vary={"lr": [1, 2]}, conditions=["B", "C"], seeds=[1]), tmp_path / "scratch"
    for name, loss in (("B/lr=1", 3.0), ("B/lr=2", 2.5), ("C/lr=1", 2.0), ("C/lr=2", 2.5)):
        rows = [{"step": step, "heldout_c4_loss": loss} for step in range(3)]
        write_run(scratch / name / "seed_1", pretrain_rows([1.0]), rows)
    found = {step.name: step for step in experiment(config, scratch).steps()}
    runs = found["report"].command[3 : found["report"].command.index("--names")]
    assert [str(Path(run).relative_to(scratch)) for run in runs] == ["B/lr=2/seed_1", "C/lr=1/seed_1"]
    assert found["compare"].command[3:5] == ["--experiment", str(scratch)]


def test_a_varied_flag_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vary: .*learning_rat"):
        steps(write(tmp_path, vary={"learning_rat": [1, 2]}))


def test_a_condition_replays_the_pre_pretraining_of_another(tmp_path: Path) -> None:
    """Of the same seed, and as long as it turns out to be."""
    shuffled = {"answers": "shuffled", "curriculum": "replay", "replay_run": "A"}
    own = {"sh": {"like": "A", "pptrain": shuffled}, "B": None}
    config = write(tmp_path, training=TRAINING, seeds=[1, 2], conditions=own)
    found = steps(config)
    assert [name for name in found if name.startswith("pptrain")] == [
        "pptrain/seed_1", "pptrain_sh/seed_1", "pptrain/seed_2", "pptrain_sh/seed_2"
    ]  # fmt: skip
    for seed in (1, 2):
        replay = found[f"pptrain_sh/seed_{seed}"]
        assert flags(replay)["replay_run"] == f"/scratch/pptrain/seed_{seed}" and flags(replay)["max_steps"] is None
        assert f"pptrain/seed_{seed}" in [step.name for step in replay.needs]
    longest = {one.run: one.steps for one in check_and_forecast(experiment(config, tmp_path / "scratch"))}
    assert longest["pptrain_sh/seed_2"] == longest["pptrain_sh/seed_1"] == 100
    typo = {"sh": {"like": "A", "pptrain": shuffled | {"replay_run": "shuffled"}}}
    with pytest.raises(UserError, match=r"condition sh: replay_run is shuffled: no condition or run; there are A, B"):
        steps(write(tmp_path, conditions=typo))
    for name in ("sh", "again", "B", "N"):
        again = {"like": "A", "pptrain": {"curriculum": "replay", "replay_run": name}}
        conditions = {"sh": {"like": "A", "pptrain": shuffled | {"replay_run": name}}, "again": again}
        with pytest.raises(UserError, match=rf"condition \w+: replay_run {name} is no pre-pretraining that it can"):
            steps(write(tmp_path, conditions=conditions))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs(path: Path) -> None:
    """Each command takes the flags that it is given; the pack holds what B reads."""
    found = steps(path)
    parsers = {"build_data_splits": build_data_splits.parse, "build_pretrain": build_pretrain.parse,
               "evaluate": evaluate.parse}  # fmt: skip
    parsed = {}
    for step in found.values():
        command = step.cache_key.split()[0]
        if command in parsers:
            parsed[command] = parsers[command](list(step.command[2 if command == "evaluate" else 3 :]))
    pack, run = parsed["build_pretrain"], next(step for step in found.values() if step.cache_key.startswith("pretrain"))
    b = flags(run)
    assert set(parsed) == set(parsers)
    assert pack.num_blocks == b["total_steps"] * b["global_batch"]
    assert (pack.seq_len, pack.tokenizer) == (b["seq_len"], b["tokenizer"])


def test_a_dry_run_shows_all_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([str(write(tmp_path, training=TRAINING)), str(tmp_path / "scratch"), "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n# ") == 12
    assert not (tmp_path / "scratch").exists()


def test_the_default_launcher_starts_commands_in_any_directory(tmp_path: Path) -> None:
    """An installation need not have the repository."""
    launcher = shlex.split(parser_of(__main__.main).get_default("launcher"))
    command = [*(part.replace("{}", "evaluate") for part in launcher), "--version"]
    surroundings = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{SHOWN}\n"), done.stderr


def test_a_launcher_without_a_place_for_the_phase(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--launcher 'deepspeed' has no \{\}"):
        __main__.main([str(write(tmp_path)), str(tmp_path / "scratch"), "--launcher", "deepspeed"])
    assert not (tmp_path / "scratch").exists()


def test_an_experiment_of_version_0_1_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "experiment.json").write_text("{}")
    with pytest.raises(UserError, match=r"of version 0.1.*Give a new directory.*data_tools.compare"):
        __main__.main([str(write(tmp_path)), str(tmp_path / "scratch")])
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["experiment.json"]


def test_a_switch_of_a_command_that_makes_data(tmp_path: Path) -> None:
    for value in (True, False):
        pack = steps(write(tmp_path, pack={"overwrite": value}))["pack"]
        assert ("--overwrite" in pack.command) == value and not any("overwrite=" in word for word in pack.command)
