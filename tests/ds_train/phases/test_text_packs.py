"""Several packs in a pretrain run: what is refused before it starts, and what its checkpoints and rows hold."""

import json
import shutil
from pathlib import Path

import pytest

from data_tools import build_pretrain
from data_tools.base.errors import UserError
from ds_train.checkpoints.resume import adapted_state
from ds_train.config.flags import former_values
from ds_train.config.trainer_flags import GROUPS
from ds_train.phases import pretrain
from ds_train.phases.early_check import check_early
from ds_train.ranks.world import World
from ds_train.run.assembly import fresh_state
from tests.support import tiny

FLAGS = "--global_batch 8 --total_steps 10 --mixin_percent 0 --pptrain_checkpoint none".split()


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack without a name, and a small one named code."""
    scratch = tmp_path_factory.mktemp("packs")
    for name in ("data", "tokenizer", "model"):
        shutil.copytree(tiny_scratch / name, scratch / name)
    shutil.rmtree(scratch / "data" / "packs", ignore_errors=True)
    build_pretrain.main(
        f"--scratch_dir {scratch} --name code --source {tiny_scratch / 'documents.jsonl'} --tokenizer "
        f"{scratch / 'tokenizer'} --seq_len {tiny.SEQ_LEN} --num_blocks 20 --val_blocks 2 --workers 1".split()
    )
    return scratch


def state(scratch: Path, *flags: str):
    """The state that a run begins with, and its phase."""
    checked = pretrain.prepare([*tiny.flags(scratch), *FLAGS, *flags], World(0, 0, 1))
    parts = checked.make_setup()
    return fresh_state(checked.inputs, parts, checked.all_flags), parts


def test_packs_are_part_of_the_trajectory(scratch: Path) -> None:
    plain, _ = state(scratch)
    mixed, parts = state(scratch, "--packs", "code=0.1", "c4=0.90")
    assert plain.fingerprints["packs"] == "None" and plain.fingerprints["c4_documents"] == "joined"
    assert mixed.fingerprints["packs"] == state(scratch, "--packs", "c4=0.9", "code=0.1")[0].fingerprints["packs"]
    former = {name: value for name, value in plain.fingerprints.items() if name not in ("packs", "c4_documents")}
    how = {"strict_layout": True, "accepted": (), "former": former_values(GROUPS["pretrain"])}
    plain.fingerprints, current = former, state(scratch)[0]
    adapted_state(plain, current, Path("step_00000001"), **how)  # of a version without these flags
    for flags, message in (
        (["--packs", "c4=0.8", "code=0.2"], r"packs: saved \['c4=0.9', 'code=0.1'\], now \['c4=0.8', 'code=0.2'\]"),
        ([], r"pack: saved another one.*packs: saved"),
        (["--packs", "c4=0.9", "code=0.1", "--c4_documents", "masked"], "c4_documents: saved joined, now masked"),
    ):
        with pytest.raises(UserError, match=message):
            adapted_state(mixed, state(scratch, *flags)[0], Path("step_00000001"), **how)
    # 80 blocks of a run without synthetic ones.
    assert parts.phase.text.token_columns(1337, 80) == {"c4_tokens": 72 * 256, "code_tokens": 8 * 256}
    assert "72 of 200 c4 blocks, 8 of 20 code blocks" in parts.summary["length"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--packs c4=0.5 code=0.5", r"needs 40 code blocks but .*packs/code/\S+ holds 20; pack more.*--allow_repeat"),
        ("--packs c4=0.5 code=0.6", "the shares sum to 1.1, expected 1"),
        ("--packs c4=0.5 cod=0.5", "no pack named cod; did you mean code"),
        ("--packs c4=0.9 code=0.1 --seq_len 128", r"(?s)c4_packed is packed for seq_len 256.*code/\S+ is packed for"),
        ("--packs code=1 --pack_dir x", "--pack_dir is the place of the pack c4"),
        ("--packs c4=1 --pack_dir nowhere", "nowhere does not exist"),
    ],
)
def test_what_is_refused_at_once(scratch: Path, flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        state(scratch, *flags.split())
    if "code=0.5" not in flags:
        return
    state(scratch, *flags.split(), "--allow_repeat")


def test_another_tokenizer_needs_a_pack_of_its_own(scratch: Path, tmp_path: Path) -> None:
    shutil.copytree(scratch / "tokenizer", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["vocab"]["another"] = max(value["model"]["vocab"].values()) + 1
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"(?s)pack c4 is there for other.*not for .*pack code is there for other"):
        state(scratch, "--packs", "c4=0.9", "code=0.1", "--tokenizer", str(tmp_path / "other"))


def test_an_experiment_is_refused_before_its_first_run(scratch: Path) -> None:
    """The pack c4 is made by the experiment; others must be there."""
    argv = ["--scratch_dir", str(scratch), "--model_name", str(scratch / "model"), *FLAGS, "--packs", "c4=0.9"]
    check_early("pretrain", [*argv, "code=0.1"], 8, has_weights=True)
    for more, message in (("books=0.1", "no pack named books"), ("code=0.2", "sum to 1.1")):
        with pytest.raises(UserError, match=message):
            check_early("pretrain", [*argv, more], 8, has_weights=True)
