"""The Hub, on a local server that speaks its API: fetched once, models and documents serve nodes without a network."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from data_tools.base import hub as base_hub
from data_tools.base.errors import UserError
from data_tools.corpus.hub_files import C4, C4_FILES, DatasetFile, _first_files
from data_tools.fetch_assets import parse
from tests.support import packing, tiny
from tests.support.hub_server import HubServer
from tests.support.launching import REPOSITORY, environment

MODEL = "owner/tiny"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}


def _run(*command: Any, code: int = 0, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=REPOSITORY, env={**environment(), **variables}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-4000:]
    return done.stdout


def _run_together(directory: Path, *jobs: list[str], **variables: str) -> list[dict[str, Any]]:
    """Run commands of heavy imports in one process; their exit codes and outputs."""
    path, results = directory / "jobs.json", directory / "results.json"
    path.write_text(json.dumps([{"module": module, "args": arguments} for module, *arguments in jobs]))
    _run("tests/support/one_process.py", path, results, **variables)
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A model with its tokenizer, in two formats of weights, and a C4 of three files."""
    from tests.support.tiny_models import tiny_config

    root = tmp_path_factory.mktemp("hub")
    model = root / "models" / MODEL
    tiny.write_tokenizer(model)
    from ds_train.model.causal_lm import build_model

    build_model(tiny_config("gpt_neox", positions=tiny.SEQ_LEN), seed=3).save_pretrained(model)
    (model / "pytorch_model.bin").write_bytes(b"the same weights, in a form that is not needed")
    packing.write_corpus(root / "corpus", packing.make_documents(200))
    dataset = root / "datasets" / C4
    (dataset / "en").mkdir(parents=True)
    files = sorted((root / "corpus").iterdir())
    for number, file in enumerate(files):
        shutil.copy(file, dataset / "en" / f"c4-train.{number:05d}-of-{len(files):05d}.json.gz")
    config = "configs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/c4-train.*.json.gz"
    (dataset / "README.md").write_text(f"---\n{config}\n---\n")
    with HubServer(root).serving() as server:
        yield server


@pytest.fixture(scope="module")
def fetched(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A scratch directory with what a login node fetched over a bad network, and what the command printed."""
    scratch = tmp_path_factory.mktemp("scratch")
    hub.fail(503, "cut", "cut", 429)
    printed = _run(
        "-m", "data_tools.fetch_assets", "hub", MODEL, "--scratch_dir", scratch, "--dataset", C4, "--num_blocks", 20,
        "--seq_len", 64, **hub.variables,
    )  # fmt: skip
    return scratch, printed


def test_cut_and_refused_downloads_are_repeated(hub: HubServer, fetched: tuple[Path, str]) -> None:
    scratch, printed = fetched
    assert hub.next_fault() is None
    commit = hub.commit("models", MODEL)
    snapshot = scratch / "hub" / "models--owner--tiny" / "snapshots" / commit
    assert str(snapshot) in printed.splitlines()
    assert sorted(path.name for path in snapshot.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    for path in snapshot.iterdir():
        assert path.read_bytes() == (hub.root / "models" / MODEL / path.name).read_bytes()
    source = scratch / "sources" / C4
    for path in (source / "en").iterdir():
        assert path.read_bytes() == (hub.root / "datasets" / C4 / "en" / path.name).read_bytes()
    assert f"python -m data_tools.build_pretrain --source {source}" in printed


def test_nodes_without_a_network_find_it(fetched: tuple[Path, str], tmp_path: Path) -> None:
    scratch, _ = fetched
    sizes = ["--max_input_size", "48", "--max_lookahead", "8", "--eval_size", "8", "--test_size", "8"]
    _run("-m", "data_tools.build_data_splits", "--scratch_dir", scratch, *sizes, "--mixin_size", 8, "--workers", 1)
    pack = ["--num_blocks", 20, "--seq_len", 64, "--val_blocks", 2, "--workers", 1, "--tokenizer", MODEL]
    _run("-m", "data_tools.build_pretrain", "--scratch_dir", scratch, "--source", scratch / "sources", *pack, **OFFLINE)
    flags = f"""--scratch_dir {scratch} --tokenizer {MODEL} --seq_len {tiny.SEQ_LEN} --mixed_precision no --max_steps 1
        --eval_subset_size 2 --global_batch 2 --micro_batch 2 --num_workers 0""".split()
    weights = ["--init", "pretrained", "--model_name", MODEL]
    trained, fits, missing = _run_together(
        tmp_path,
        ["ds_train.pptrain", *flags, *weights],
        ["ds_train.preflight", "pptrain", *flags, *weights, "--run_name", "next", "--gpus_per_node", "1", "--cpu"],
        ["ds_train.preflight", "pptrain", *flags, "--model_name", "owner/other", "--run_name", "next"],
        **OFFLINE,
    )
    assert trained["code"] == 0, trained["output"][-3000:]
    assert fits["code"] == 0, fits["output"][-3000:]
    command = "python -m data_tools.fetch_assets hub owner/other --scratch_dir DIR"
    assert missing["code"] == 1 and command in missing["output"]


def test_weights_that_were_left_out_are_missed_before_the_start(hub: HubServer, tmp_path: Path) -> None:
    command = ["-m", "data_tools.fetch_assets", "hub", MODEL, "--without_weights", "--scratch_dir", tmp_path]
    snapshot = Path(_run(*command, "--revision", "main", **hub.variables).splitlines()[-1])
    assert not (snapshot / "model.safetensors").exists() and (snapshot / "config.json").exists()
    check = (
        "from data_tools.base.hub import use_fetched; from ds_train.model.causal_lm import check_weights_are_here;"
        f"use_fetched({str(tmp_path)!r}); check_weights_are_here({MODEL!r})"
    )
    printed = _run("-c", check, code=1, **OFFLINE)
    assert f"weights of {MODEL} are not here" in printed and f"fetch_assets hub {MODEL}" in printed


def test_c4_streams_from_the_hub_over_a_bad_network(hub: HubServer, tmp_path: Path) -> None:
    """The pack is that of the same files without a network."""
    tiny.write_tokenizer(tmp_path / "tokenizer")
    files = hub.root / "datasets" / C4 / "en"
    hub.fail(503, "cut")
    packs = {"streamed": [], "local": ["--source", files]}
    for name, source in packs.items():
        more = ["--num_blocks", 20, "--seq_len", 64, "--val_blocks", 4, "--workers", 1, *source]
        pack = ["--pack_dir", tmp_path / name, "--tokenizer", tmp_path / "tokenizer", *more]
        _run("-m", "data_tools.build_pretrain", *pack, **hub.variables)
    assert hub.next_fault() is None
    streamed, local = (sorted((tmp_path / name).glob("*.bin")) for name in packs)
    assert [path.read_bytes() for path in streamed] == [path.read_bytes() for path in local] and streamed
    meta = json.loads((tmp_path / "streamed" / "meta.json").read_text())
    assert meta["source"]["revision"] == hub.commit("datasets", C4)


def test_a_model_that_does_not_exist_is_one_error(hub: HubServer, tmp_path: Path) -> None:
    command = ["-m", "data_tools.fetch_assets", "hub", "owner/none", "--scratch_dir", tmp_path]
    printed = _run(*command, code=1, **hub.variables)
    assert printed.startswith("error: owner/none could not be fetched from the Hub (") and printed.count("\n") <= 2
    assert not list(tmp_path.iterdir())


class TestFirstFiles:
    LISTED: ClassVar = [DatasetFile(f"en/c4-train.{n:05d}-of-00004.json.gz", 1900) for n in (2, 0, 3, 1)]

    def test_as_many_as_the_tokens_need_and_a_fifth_more(self) -> None:
        for tokens, expected in ((1, 1), (830, 1), (840, 2), (1600, 2), (3300, 4)):
            found = _first_files(C4, self.LISTED, C4_FILES, tokens)
            assert found == sorted(self.LISTED)[:expected], tokens

    def test_too_few_files_or_none_are_errors(self) -> None:
        with pytest.raises(UserError, match=r"its 4 files that fit .* Ask for fewer --num_blocks"):
            _first_files(C4, self.LISTED, C4_FILES, 5000)
        with pytest.raises(UserError, match=r"--files \*.parquet: allenai/c4 has no such files; it has en/c4-train"):
            _first_files(C4, self.LISTED, "*.parquet", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to fetch"),
        ("pythia-160m", "pythia-160m is no hub id; expected owner/name"),
        ("a/b c/d --revision main", "--revision is that of one model, 2 are named"),
        ("a/b --num_blocks 3", "about documents: give --dataset"),
        (f"--dataset {C4}", "give --num_blocks"),
        ("--dataset owner/texts --num_blocks 3", "and --files"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        parse(["hub", *arguments.split(), "--scratch_dir", str(tmp_path)])


def test_without_what_was_fetched_the_clients_own_cache_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "theirs")
    base_hub.use_fetched(tmp_path)
    base_hub.use_fetched(None)
    assert constants.HF_HUB_CACHE == "theirs"
    (tmp_path / "hub").mkdir()
    base_hub.use_fetched(tmp_path)
    assert str(tmp_path / "hub") == constants.HF_HUB_CACHE
