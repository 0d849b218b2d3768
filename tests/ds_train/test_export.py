"""Exported checkpoints open with transformers alone and compute what the trained model computed."""

import json
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import load_tokenizer
from ds_train import export
from tests.support import tiny
from tests.support.launching import launch, read_log
from tests.system.launched_export import IDS

DTYPES = {"no": ("fp32", torch.float32), "bf16": ("bf16", torch.bfloat16)}
TOLERANCE = {"no": 1e-5, "bf16": 0.01}  # kernels may add up in another order; bf16 logits near 1 lie 0.008 apart


@dataclass(frozen=True)
class Trained:
    """A way to train; ``tied`` has one matrix for input and output embeddings."""

    ranks: int
    precision: str
    zero: int
    model: str = "gpt_neox"

    @property
    def name(self) -> str:
        return f"export_{self.ranks}ranks_{self.precision}_zero{self.zero}_{self.model}"


ALL = [
    *(Trained(2, precision, zero) for precision, zero in [("no", 0), *product(("no", "bf16"), (1, 2, 3))]),
    *(Trained(1, precision, zero) for precision, zero in product(("no", "bf16"), (1, 3))),
    *(Trained(2, precision, zero, "tied") for precision, zero in (("no", 0), ("bf16", 1), ("bf16", 3))),
]
USED_ON = [Trained(2, "bf16", 1), Trained(2, "bf16", 3)]  # evaluated, and pretrained from


def _training(scratch: Path, trained: Trained) -> dict[str, Any]:
    flags = tiny.flags(scratch)
    if trained.model == "tied":
        flags[flags.index("--model_name") + 1] = str(scratch / "tied")
    argv = [
        *flags, *"--max_steps 3 --num_workers 0 --global_batch 8 --micro_batch 4 --lr 5e-3".split(),
        "--eval_subset_size", "1", "--mixed_precision", trained.precision, "--zero_stage", str(trained.zero),
        "--run_name", trained.name,
    ]  # fmt: skip
    return {"command": "pptrain", "argv": argv, "logits": str(scratch / f"{trained.name}.pt")}


def _uses(scratch: Path, trained: Trained) -> list[dict[str, Any]]:
    """Evaluate and pretrain, from the checkpoint and from its export."""
    commands = []
    for kind, source in (("run", scratch / trained.name), ("out", scratch / f"{trained.name}_fp32")):
        output = scratch / f"{trained.name}_{kind}.json"
        argv = [str(source), "--scratch_dir", str(scratch), "--output", str(output)]  # both tell their seq_len
        commands.append({"command": "evaluate", "argv": argv})
        argv = [
            "--scratch_dir", str(scratch), "--seq_len", str(tiny.SEQ_LEN), "--pptrain_checkpoint", str(source),
            *"--total_steps 2 --log_every 1 --eval_subset_size 8 --global_batch 8 --micro_batch 4".split(),
            "--run_name", f"{trained.name}_{kind}", "--num_workers", "0",
        ]  # fmt: skip
        commands.append({"command": "pretrain", "argv": argv})
    return commands


def _launch(directory: Path, commands: list[dict[str, Any]], ranks: int) -> None:
    path = directory / f"commands_{ranks}.json"
    path.write_text(json.dumps(commands))
    done = launch("tests/system/launched_export.py", str(path), num_ranks=ranks)
    assert done.returncode == 0, done.stdout[-5000:]


def _export(scratch: Path, trained: Trained) -> None:
    for dtype in ("fp32", "bf16"):
        export.main([str(scratch / trained.name), str(scratch / f"{trained.name}_{dtype}"), "--dtype", dtype])


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every way of training, run and exported; the exports of some evaluated and pretrained from."""
    tiny.write_tied_model(tiny_scratch / "tied")
    directory = tmp_path_factory.mktemp("export")
    for ranks, more in ((2, []), (1, [command for trained in USED_ON for command in _uses(tiny_scratch, trained)])):
        chosen = [trained for trained in ALL if trained.ranks == ranks]
        _launch(directory, [_training(tiny_scratch, trained) for trained in chosen] + more, ranks)
        for trained in chosen:
            _export(tiny_scratch, trained)
    return tiny_scratch


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(IDS[:-1])[None]).logits[0]


@pytest.mark.launch
class TestTrainedModels:
    @pytest.mark.parametrize("trained", ALL, ids=lambda trained: trained.name)
    def test_logits_are_those_of_the_engine(self, scratch: Path, trained: Trained) -> None:
        name, dtype = DTYPES[trained.precision]
        model = AutoModelForCausalLM.from_pretrained(scratch / f"{trained.name}_{name}")
        assert model.dtype == dtype
        expected = torch.load(scratch / f"{trained.name}.pt")
        found = _logits(model)
        assert expected.dtype == found.dtype == dtype and expected.std() > 0.05
        assert (found - expected).abs().max() <= TOLERANCE[trained.precision]

    @pytest.mark.parametrize("trained", [t for t in ALL if t.precision == "bf16"], ids=lambda trained: trained.name)
    def test_fp32_weights_are_more_than_the_rounded_ones(self, scratch: Path, trained: Trained) -> None:
        whole, rounded = (
            AutoModelForCausalLM.from_pretrained(scratch / f"{trained.name}_{dtype}").state_dict()
            for dtype in ("fp32", "bf16")
        )
        assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
        assert all(torch.equal(tensor.bfloat16(), rounded[name]) for name, tensor in whole.items())
        assert not all(torch.equal(tensor, rounded[name].float()) for name, tensor in whole.items())

    @pytest.mark.parametrize("trained", [t for t in ALL if t.model == "tied"], ids=lambda trained: trained.name)
    def test_tied_weights_are_stored_once(self, scratch: Path, trained: Trained) -> None:
        for directory in scratch.glob(f"{trained.name}_*"):
            model = AutoModelForCausalLM.from_pretrained(directory)
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert model.config.max_position_embeddings == tiny.SEQ_LEN, "no position that was never trained"
            stored = load_file(directory / "model.safetensors")
            assert stored.keys() == {name for name, _ in model.named_parameters()}

    def test_directory(self, scratch: Path) -> None:
        directory = scratch / f"{USED_ON[0].name}_fp32"
        names = {path.name for path in directory.iterdir()}
        assert names == {
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {directory.stat().st_mode & 0o666}
        model, tokenizer = (kind.from_pretrained(directory) for kind in (AutoModelForCausalLM, AutoTokenizer))
        text = "Suppose we have the following facts: If a person is unxre, they are mtemfa."
        ours = load_tokenizer(str(scratch / "tokenizer"))
        assert tokenizer(text)["input_ids"] == ours.encode(text)
        assert model.config.use_cache and model.generation_config.use_cache
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id == ours.eos_id
        assert not list(scratch.glob(".export*")), "nothing temporary stays"

    @pytest.mark.parametrize("trained", USED_ON, ids=lambda trained: trained.name)
    def test_evaluation_of_export_and_checkpoint_agree(self, scratch: Path, trained: Trained) -> None:
        run, out = (json.loads((scratch / f"{trained.name}_{kind}.json").read_text()) for kind in ("run", "out"))
        assert run.pop("checkpoint") != out.pop("checkpoint")
        assert run == out and run["loss"] and run["c4_loss"] and run["seq_len"] == tiny.SEQ_LEN

    @pytest.mark.parametrize("trained", USED_ON, ids=lambda trained: trained.name)
    def test_pretraining_from_export_and_checkpoint_agree(self, scratch: Path, trained: Trained) -> None:
        for log, columns in (("train", ("loss", "grad_norm", "ledger")), ("eval", ("heldout_loss", "heldout_c4_loss"))):
            run, out = (
                [[row[column] for column in columns] for row in read_log(scratch / f"{trained.name}_{kind}", log)]
                for kind in ("run", "out")
            )
            assert run == out and len(run) == 2

    def test_step_directory_and_empty_out(self, scratch: Path, tmp_path: Path) -> None:
        run = scratch / ALL[0].name
        export.main([str(run / "checkpoints" / "step_00000003"), str(tmp_path)])
        weights = (tmp_path / "model.safetensors").read_bytes()
        assert weights == (scratch / f"{ALL[0].name}_fp32" / "model.safetensors").read_bytes()

    def test_failure_leaves_nothing(self, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("data_tools.corpus.tokenizer.TextTokenizer.save", full)
        with pytest.raises(UserError, match="No space left"):
            export.main([str(scratch / ALL[0].name), str(tmp_path / "out")])
        assert list(tmp_path.iterdir()) == []

    def test_damaged_checkpoint_is_refused(self, scratch: Path, tmp_path: Path) -> None:
        step = tmp_path / "step_00000003"
        shutil.copytree(scratch / ALL[0].name / "checkpoints" / "step_00000003", step)
        with (step / "mp_rank_00_model_states.pt").open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        with pytest.raises(UserError, match="is damaged"):
            export.main([str(step), str(tmp_path / "out")])


def test_existing_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match="not an empty directory"):
        export.main(["anything", str(tmp_path)])
    with pytest.raises(UserError, match="not an empty directory"):
        export.main(["anything", str(tmp_path / "kept")])


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        export.main([str(tmp_path / "none"), str(tmp_path / "out")])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a Hugging Face directory already"):
        export.main([str(tmp_path), str(tmp_path / "out")])
