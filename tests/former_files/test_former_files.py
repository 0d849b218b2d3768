"""What former versions wrote is read and continued by this one, as they would have continued it themselves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools import build_pretrain, plot_run, summarize_run
from data_tools.base.files import sha256_of_file
from data_tools.corpus.shards import PackedBlocks
from data_tools.search.splits import SPLIT_NAMES, Splits, find_data_dir
from ds_train import audit, export
from tests.former_files import former
from tests.support.launching import launch, read_log, run_all

TOLERANCE = {1: 1e-6, 2: 1e-3}  # by ranks: the runs on one are in fp32, those on two in bf16
FRESH_STEPS = 2
STOPPED = 86
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["0.1.0"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(version: str) -> dict[str, Any]:
    return former.expected_of(version)


@pytest.fixture(scope="module")
def scratch(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scratch directory as it was written. Not to be changed."""
    return former.unpack(version, tmp_path_factory.mktemp("former"))


@pytest.fixture(scope="module")
def copy(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another copy of it, in its own place, to be written in."""
    directory = tmp_path_factory.mktemp("former_copy")
    shutil.copytree(scratch, directory, dirs_exist_ok=True)
    former.replace_in_texts(directory, str(scratch), str(directory))
    return directory


@pytest.fixture(scope="module")
def continued(copy: Path, expected: dict[str, Any]) -> Path:
    """Its runs on one rank have been begun anew from their run files, under other names, and continued to their end."""
    runs = []
    for name, run in expected["runs"].items():
        if run["ranks"] == 1:
            argv = ["--config", str(copy / name / "run.yaml"), "--run_name", f"{name}_again"]
            argv += ["--stop_step", str(FRESH_STEPS)]
            runs.append({"phase": run["phase"], "argv": argv, "code": STOPPED})
    run_all([*runs, *former.continuations(expected["runs"], copy, 1)], copy, 1)
    return copy


def assert_same(rows: Rows, expected: Rows, tolerance: float) -> None:
    """Every column that is expected is there; losses within the tolerance, all else exactly."""
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        exact = {name: value for name, value in wanted.items() if name in former.EXACT}
        assert {name: row[name] for name in exact} == exact
        losses = {name: value for name, value in wanted.items() if name not in former.EXACT}
        assert {name: row[name] for name in losses} == pytest.approx(losses, abs=tolerance)


def assert_continued(scratch: Path, name: str, run: dict[str, Any]) -> None:
    """A run continued from its checkpoint, once, and gave the rows that are expected."""
    assert [launch["step"] for launch in read_launches(scratch / name)] == [0, run["stop"]]
    assert not list((scratch / name).glob("superseded_*"))
    logs = {log: read_log(scratch / name, log) for log in ("train", "eval")}
    if run["phase"] == "pptrain":  # 0.1.0 did not evaluate at its end
        assert logs["eval"].pop()["step"] == logs["train"][-1]["step"]
    for log, rows in logs.items():
        assert_same(rows, run[log], TOLERANCE[run["ranks"]])


def read_launches(run: Path) -> Rows:
    return [json.loads(line) for line in (run / "launches.jsonl").read_text().splitlines()]


@pytest.mark.launch
@pytest.mark.parametrize("name", ["pptrain", "pretrain"])
def test_stopped_runs_go_on(continued: Path, expected: dict[str, Any], name: str) -> None:
    assert_continued(continued, name, expected["runs"][name])


@pytest.mark.launch
@pytest.mark.parametrize("name", ["pptrain", "pretrain"])
def test_run_files_repeat_runs(continued: Path, expected: dict[str, Any], name: str) -> None:
    rows = read_log(continued / f"{name}_again")
    assert_same(rows, expected["runs"][name]["train"][:FRESH_STEPS], TOLERANCE[1])


@pytest.mark.launch
def test_a_continued_run_agrees_with_what_it_was(scratch: Path, continued: Path) -> None:
    for name in ("pptrain", "pretrain"):
        assert audit.main([str(scratch / name), str(continued / name), "--loss_tolerance", str(TOLERANCE[1])]) == 0


@pytest.mark.launch
def test_stopped_bf16_run_on_two_ranks_continues(copy: Path, expected: dict[str, Any]) -> None:
    run_all(former.continuations(expected["runs"], copy, 2), copy, 2)
    assert_continued(copy, "pptrain_bf16", expected["runs"]["pptrain_bf16"])


@pytest.mark.launch
def test_checkpoint_is_evaluated_as_before(scratch: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    arguments = [str(scratch / "pptrain"), "--scratch_dir", str(scratch), "--split", "test", "--output", str(output)]
    done = launch("ds_train/evaluate.py", *arguments, num_ranks=1)
    assert done.returncode == 0, done.stdout
    report, before = (json.loads(path.read_text()) for path in (output, scratch / "pptrain_test.json"))
    losses = {name: before.pop(name) for name in ("loss", "c4_loss")}
    assert {name: report[name] for name in losses} == pytest.approx(losses, abs=TOLERANCE[1])
    assert {name: report[name] for name in before} == before


@pytest.mark.parametrize("name", ["pptrain", "pptrain_bf16", "pretrain"])
def test_checkpoints_are_exported(scratch: Path, tmp_path: Path, name: str) -> None:
    export.main([str(scratch / name), str(tmp_path / "exported")])
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "exported").iterdir()}


def test_unfinished_pack_continues(copy: Path, expected: dict[str, Any]) -> None:
    pack = copy / "data" / "unfinished_pack"
    before = {path: path.stat().st_mtime_ns for path in pack.glob("*.bin")}
    assert len(before) == 3
    build_pretrain.main(former.placed(expected["unfinished_pack"]["resume"], copy))
    assert {path.name: sha256_of_file(path) for path in pack.glob("*.bin")} == expected["unfinished_pack"]["sha256"]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished files are not written again"
    PackedBlocks(pack).verify()


def test_finished_pack_is_the_one_that_is_asked_for(
    scratch: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = PackedBlocks(scratch / "data" / "c4_packed")
    blocks.verify()
    assert blocks.block(blocks.num_blocks - 1).shape == blocks.validation_block(0).shape == (blocks.meta.block_len,)
    build_pretrain.main(former.placed(expected["finished_pack"]["repeat"], scratch))
    assert "already holds this pack" in capsys.readouterr().out


def test_splits_are_read(scratch: Path) -> None:
    splits = Splits(find_data_dir(scratch))
    assert {name: len(splits.rows(name)) for name in SPLIT_NAMES} == {"eval": 40, "test": 20, "mixin": 150}
    assert len(splits.reserved_digests()) == 210


def test_logs_are_summarised_and_drawn(
    scratch: Path, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(scratch / name) for name in expected["runs"]]
    evaluation = ["--evaluation", str(scratch / "pptrain_test.json")]
    summarize_run.main([*runs, *evaluation])
    steps = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("optimizer steps"))
    assert steps.split()[2:] == [f"{run['stop']:,}" for run in expected["runs"].values()]
    plot_run.main([*runs, *evaluation, "--out", str(tmp_path / "report")])
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(name in page for name in expected["runs"])
