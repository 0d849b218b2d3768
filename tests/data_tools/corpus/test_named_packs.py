"""Packs by name: one for each tokenizer, found by it; and what --packs may say."""

from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.build_pretrain import main
from data_tools.corpus.named_packs import as_texts, check_pack_exists, find_pack, pack_shares
from data_tools.corpus.shards import META_NAME, PROGRESS_NAME
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.train_tokenizer import train_bpe
from tests.support import packing


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, two tokenizers, and a pack of each named code."""
    root = tmp_path_factory.mktemp("named")
    packing.write_corpus(root / "corpus", packing.make_documents(400))
    packing.save_small_tokenizer(root / "tokenizer")
    train_bpe(iter(packing.make_documents(50, seed=2)), 310).save(root / "other")
    for tokenizer in ("tokenizer", "other"):
        main(arguments(root, tokenizer))
    return root


def arguments(root: Path, tokenizer: str, name: str = "code") -> list[str]:
    flags = "--num_blocks 20 --val_blocks 2 --seq_len 32 --workers 1".split()
    where = ["--scratch_dir", str(root), "--source", str(root / "corpus"), "--tokenizer", str(root / tokenizer)]
    return [*where, "--name", name, *flags]


def test_packs_of_several_tokenizers_are_side_by_side_and_found_by_theirs(root: Path) -> None:
    tokenizers = [load_tokenizer(str(root / name)) for name in ("tokenizer", "other")]
    found = [find_pack(root, "code", tokenizer) for tokenizer in tokenizers]
    assert [pack.meta.tokenizer_sha256 for pack in found] == [tokenizer.fingerprint for tokenizer in tokenizers]
    assert {pack.directory.parent for pack in found} == {root / "data" / "packs" / "code"}
    assert find_pack(root, "c4", tokenizers[0], found[0].directory).directory == found[0].directory


def test_a_pack_that_is_not_there_is_one_message(root: Path, tmp_path: Path) -> None:
    packing.write_corpus(tmp_path / "corpus", packing.make_documents(20))
    third = train_bpe(iter(packing.make_documents(50, seed=3)), 290)
    with pytest.raises(
        UserError, match=r"code is there for other tokenizers \(.*other, .*tokenizer\), not for .*--name"
    ):
        find_pack(root, "code", third)
    with pytest.raises(UserError, match=r"no pack named cod; did you mean code\? Make it with .*--name cod\."):
        check_pack_exists(root, "cod")
    with pytest.raises(UserError, match=r"no pack named c4; .*packs holds code\. Make it with .*or without a name"):
        check_pack_exists(root, "c4")
    begun = tmp_path / "data" / "packs" / "code" / "tokenizer_x"
    begun.mkdir(parents=True)
    (begun / PROGRESS_NAME).write_text("{}")
    with pytest.raises(UserError, match="unfinished pack"):
        check_pack_exists(tmp_path, "code")
    meta = next((root / "data" / "packs" / "code").glob(f"*/{META_NAME}"))
    again = meta.parent.with_name("copy")
    again.mkdir()
    (again / META_NAME).write_bytes(meta.read_bytes())
    tokenizers = [load_tokenizer(str(root / name)) for name in ("tokenizer", "other")]
    with pytest.raises(UserError, match=r"more than once for this tokenizer .*keep one"):
        [find_pack(root, "code", tokenizer) for tokenizer in tokenizers]
    (again / META_NAME).unlink()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--name code", "--name places the pack under --scratch_dir"),
        ("--name code --scratch_dir s --pack_dir p", "and no --pack_dir"),
        ("--name a/b --scratch_dir s", "'a/b' cannot name a pack"),
        ("--name mixin --scratch_dir s", "'mixin' cannot name a pack"),
    ],
)
def test_names_that_are_refused(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(flags.split())


def test_shares_mean_the_same_in_any_order() -> None:
    assert pack_shares(["code=0.1", "c4=.90"]) == {"c4": 900_000, "code": 100_000}
    assert as_texts(pack_shares(["code=0.1", "c4=.90"])) == ["c4=0.9", "code=0.1"]
    thirds = pack_shares(["a=0.333333", "b=0.333333", "c=0.333334"])
    assert pack_shares(as_texts(thirds)) == thirds and sum(thirds.values()) == 1_000_000


@pytest.mark.parametrize(
    ("packs", "message"),
    [
        ("c4=0.9 code=0.2", "the shares sum to 1.1, expected 1"),
        ("c4=0.9", "sum to 0.9"),
        ("c4=0.5 c4=0.5", "names c4 twice"),
        ("c4", "expected NAME=SHARE with a share in"),
        ("c4=0 code=1", "--packs c4=0: expected NAME=SHARE"),
        ("c4=nan", "expected NAME=SHARE"),
        ("c4=1.5 code=-0.5", "expected NAME=SHARE"),
        ("../x=1", "cannot name a pack"),
    ],
)
def test_shares_that_are_refused(packs: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack_shares(packs.split())
