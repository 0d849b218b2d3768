"""evaluate on several checkpoints, in this process: one CSV row each, resumed where it was."""

import csv
import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.corpus.named_packs import named_pack_directory
from data_tools.corpus.shards import pack_directory
from data_tools.corpus.tokenizer import load_tokenizer
from ds_train import evaluate
from ds_train.checkpoints.save import read_state
from ds_train.phases import pptrain, scores
from tests.support import tiny
from tests.support.process_group import own_process_group

STEPS = (2, 4, 6)


@pytest.fixture(scope="module")
def run(tiny_scratch: Path) -> Iterator[Path]:
    """A run with a checkpoint of each of these steps."""
    flags = "--run_name scored --max_steps 6 --save_every 2 --keep_last 0 --num_workers 0 --global_batch 8 --lr 2e-3"
    with own_process_group():
        pptrain.main([*tiny.flags(tiny_scratch), "--micro_batch", "8", *flags.split()])
    yield tiny_scratch / "scored"
    shutil.rmtree(tiny_scratch / "scored")


def score(run: Path, *arguments: object) -> None:
    with own_process_group():
        evaluate.main([*map(str, arguments), "--scratch_dir", str(run.parent), "--split", "test"])


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_every_checkpoint_has_the_row_of_its_report(run: Path, tmp_path: Path) -> None:
    score(run, run, "--all_checkpoints", "--csv", tmp_path / "all.csv")
    rows = rows_of(tmp_path / "all.csv")
    assert [(row["path"], int(row["step"])) for row in rows] == [(str(checkpoint(run, step)), step) for step in STEPS]
    assert [int(row["tokens"]) for row in rows] == [read_state(checkpoint(run, step)).tokens for step in STEPS]
    score(run, checkpoint(run, STEPS[1]), "--output", tmp_path / "one.json")
    report = json.loads((tmp_path / "one.json").read_text())
    assert report["dtype"] == json.loads(rows[1]["settings"])["dtype"] == "fp32"
    for name in ("loss", "c4_loss", "accuracy_any", "accuracy_first_low", "num_examples"):
        assert float(rows[1][name]) == report[name], name
    for group in report["by_lookahead"]:
        assert float(rows[1][f"accuracy_any_lookahead_{group['lookahead']}"]) == group["accuracy_any"]


def test_a_repeated_command_adds_what_is_missing_and_passes_over_what_is_damaged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, other = tmp_path / "some.csv", tmp_path / "copy"
    shutil.copytree(run, other)
    score(run, checkpoint(other, STEPS[1]), "--csv", table)
    (first,) = table.read_text().splitlines()[1:]
    model = next(checkpoint(other, STEPS[0]).glob("*_model_states.pt"))
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    score(run, other, "--all_checkpoints", "--csv", table)
    messages = capsys.readouterr().err
    assert "has 1 of 3 checkpoints already" in messages and "is damaged" in messages
    assert [int(row["step"]) for row in rows_of(table)] == [STEPS[1], STEPS[2]]
    assert table.read_text().splitlines()[1] == first

    # A checkpoint that was saved again is evaluated again, in place of its row.
    manifest = checkpoint(other, STEPS[1]) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()), indent=3))
    before = rows_of(table)
    score(run, other, "--all_checkpoints", "--csv", table)
    again = rows_of(table)
    assert [int(row["step"]) for row in again] == [STEPS[2], STEPS[1]]
    assert again[0] == before[1] and again[1] == before[0] | {"hash": again[1]["hash"]} != before[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--csv", "all.csv", "--dtype", "bf16"],
            r"has results with dtype fp32 \(bf16 here\); give another file",
        ),
        (["--csv", "foreign.csv"], r"foreign.csv is no table of evaluate"),
        (["--output", "x.json"], r"--output holds the results of one checkpoint; give --csv"),
        (["--csv", "missing/all.csv"], r"--csv missing/all.csv: expected a file in a directory that exists"),
    ],
)
def test_what_a_table_cannot_hold_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    score(run, checkpoint(run, STEPS[0]), "--csv", "all.csv")
    Path("foreign.csv").write_text("a,b\n1,2\n")
    before = Path("all.csv").read_text()
    with pytest.raises(UserError, match=message):
        score(run, run, "--all_checkpoints", *arguments)
    assert Path("all.csv").read_text() == before and not Path("x.json").exists()


def test_a_directory_without_checkpoints_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--all_checkpoints: .* has no checkpoints"):
        score(run, tmp_path, "--all_checkpoints")


def test_all_ranks_evaluate_what_rank_0_has_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 saw two checkpoints of a run that still trains, and the first of them damaged; this rank sees three."""

    def with_all_ranks(world, decide):
        return "damaged on rank 0" if decide.args[0] == checkpoint(run, STEPS[0]) else None

    monkeypatch.setattr(scores, "on_main", lambda world, work: work()[:2])
    monkeypatch.setattr(scores, "with_all_ranks", with_all_ranks)
    score(run, run, "--all_checkpoints", "--csv", tmp_path / "agreed.csv")
    assert [int(row["step"]) for row in rows_of(tmp_path / "agreed.csv")] == [STEPS[1]]
    assert "step_00000002: damaged on rank 0" in capsys.readouterr().err


def test_the_pack_of_c4_is_found_by_the_tokenizer(tiny_scratch: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_scratch / "tokenizer"))
    args = Namespace(scratch_dir=tmp_path, pack_dir=None)
    assert scores._pack(args, tokenizer) is None
    unnamed, named = pack_directory(tmp_path), named_pack_directory(tmp_path, "c4", tokenizer)
    shutil.copytree(pack_directory(tiny_scratch), unnamed)
    assert scores._pack(args, tokenizer).directory == unnamed
    meta = json.loads((unnamed / "meta.json").read_text())
    (unnamed / "meta.json").write_text(json.dumps(meta | {"tokenizer_sha256": "0" * 64}))
    with pytest.raises(UserError, match="was packed with another tokenizer"):
        scores._pack(args, tokenizer)
    shutil.copytree(pack_directory(tiny_scratch), named)
    assert scores._pack(args, tokenizer).directory == named
