"""The table block → examples: complete, within capacity, well filled, a pure function of its inputs."""

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples import mixin_table
from data_tools.samples.documents import encode_examples, example_documents
from data_tools.samples.mixin_table import MixinTable, load_mixin_table, pack_table
from tests.support.tiny_models import tiny_tokenizer


def random_lengths(seed: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    seq_len = int(rng.integers(20, 300))
    return rng.integers(1, int(seq_len * rng.uniform(0.3, 1.3)) + 2, int(rng.integers(1, 200))), seq_len


def blocks_of(table: MixinTable) -> list[list[int]]:
    return [table.examples_of(block) for block in range(table.num_blocks)]


@pytest.mark.parametrize("mode", ["packed", "single"])
@pytest.mark.parametrize("seed", range(15))
def test_every_fitting_row_is_in_exactly_one_block_within_its_capacity(seed, mode):
    lengths, seq_len = random_lengths(seed)
    fitting = [row for row, length in enumerate(lengths) if length <= seq_len]
    table = pack_table(lengths, seq_len, mode)
    blocks = blocks_of(table)
    assert sorted(row for block in blocks for row in block) == fitting
    assert all(block and sum(lengths[row] for row in block) <= seq_len for block in blocks)
    assert table.num_too_long == len(lengths) - len(fitting)
    assert table.fill == pytest.approx(np.mean([lengths[block].sum() for block in blocks]) / seq_len, rel=1e-12)
    assert 0 < table.fill <= 1
    if mode == "single":
        assert all(len(block) == 1 for block in blocks)


def next_fit_fill(lengths: np.ndarray, seq_len: int) -> float:
    """Fill of the simplest packing: rows in order, a new block whenever the next does not fit."""
    num_blocks, room = 0, -1
    for length in lengths[lengths <= seq_len].tolist():
        if length > room:
            num_blocks, room = num_blocks + 1, seq_len
        room -= length
    return lengths[lengths <= seq_len].sum() / (num_blocks * seq_len)


def best_fit_decreasing(lengths: np.ndarray, seq_len: int) -> list[list[int]]:
    """The textbook algorithm, in quadratic time."""
    blocks: list[list[int]] = []
    rooms: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fits = [(room, block) for block, room in enumerate(rooms) if room >= lengths[row]]
        if lengths[row] > seq_len:
            continue
        if fits:
            block = min(fits)[1]
            blocks[block].append(row)
            rooms[block] -= lengths[row]
        else:
            blocks.append([row])
            rooms.append(seq_len - lengths[row])
    return blocks


@pytest.mark.parametrize("seed", range(15))
def test_packing_is_best_fit_decreasing(seed):
    lengths, seq_len = random_lengths(seed)
    table = pack_table(lengths, seq_len, "packed")
    assert blocks_of(table) == best_fit_decreasing(lengths, seq_len)
    assert table.fill >= next_fit_fill(lengths, seq_len) - 1e-12
    assert table.num_blocks >= lengths[lengths <= seq_len].sum() / seq_len


def test_packing_beats_next_fit_on_lengths_like_the_real_ones():
    """Half of the examples shorter than a third of a block, some nearly as long as one."""
    lengths = np.random.default_rng(1).triangular(150, 400, 1900, 20_000).astype(np.int64)
    packed, single = pack_table(lengths, 2048, "packed"), pack_table(lengths, 2048, "single")
    assert packed.fill > next_fit_fill(lengths, 2048) + 0.05
    assert single.fill == pytest.approx(lengths.mean() / 2048)


def test_an_exactly_full_block_is_allowed():
    table = pack_table(np.array([6, 4, 10, 11]), 10, "packed")
    assert sorted(map(sorted, blocks_of(table))) == [[0, 1], [2]]
    assert (table.fill, table.num_too_long) == (1.0, 1)


@pytest.mark.parametrize("mode", ["packed", "single"])
@pytest.mark.parametrize("lengths", [[], [11, 50]])
def test_nothing_that_fits_is_an_error(lengths, mode):
    with pytest.raises(UserError, match="seq_len"):
        pack_table(np.array(lengths, np.int64), 10, mode)


ROWS = [
    {"input_text": f"{name} is" + " a" * (number % 17), "output_texts": ["x" * (number % 5 + 1), "yy"]}
    for number, name in enumerate(["Ann", "Bob", "Cy", "Dee", "Ed"] * 12)
]


def load(directory, **changes) -> MixinTable:
    given = {"rows": ROWS, "split_sha256": "ab" * 32, "tokenizer": tiny_tokenizer(), "seq_len": 60, "mode": "packed"}
    return load_mixin_table(**{**given, **changes}, cache_dir=directory)


def assert_equal(one: MixinTable, other: MixinTable) -> None:
    assert np.array_equal(one.examples, other.examples) and np.array_equal(one.starts, other.starts)
    assert one.examples.dtype == other.examples.dtype and one.starts.dtype == other.starts.dtype
    assert (one.fill, one.num_too_long) == (other.fill, other.num_too_long)


def test_lengths_are_the_targets_of_the_trained_documents(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(mixin_table, "_ENCODE_ROWS", 7)  # several rounds, the last one short
    monkeypatch.setattr(
        mixin_table, "pack_table", lambda lengths, *rest: seen.append(lengths) or pack_table(lengths, *rest)
    )
    load(tmp_path)
    encoded = encode_examples(tiny_tokenizer(), [r["input_text"] for r in ROWS], [r["output_texts"][:1] for r in ROWS])
    documents = [example_documents(example, loss="lm")[0] for example in encoded]
    assert seen[0].tolist() == [len(document.weights) for document in documents]


def test_cache_gives_back_the_same_table_without_reading_rows(tmp_path):
    built = load(tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    written = path.stat().st_mtime_ns
    assert_equal(load(tmp_path / "cache", rows=[]), built)
    assert path.stat().st_mtime_ns == written
    assert_equal(load(tmp_path / "another"), built)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    assert_equal(load(tmp_path / "file" / "cache"), load(tmp_path / "cache"))


def test_cache_tells_inputs_apart(tmp_path):
    tokenizer = tiny_tokenizer()
    other_eos = TextTokenizer(tokenizer._backend, "a", "tiny")
    variants = [{}, {"split_sha256": "cd" * 32}, {"seq_len": 61}, {"mode": "single"}, {"tokenizer": other_eos}]
    for number, changes in enumerate(variants, 1):
        load(tmp_path, **changes)
        assert len(list(tmp_path.iterdir())) == number, changes
    renamed = TextTokenizer(tokenizer._backend, tokenizer.eos_token, "another name for the same")
    load(tmp_path, tokenizer=renamed)
    assert len(list(tmp_path.iterdir())) == len(variants)


def test_an_empty_table_has_no_blocks():
    assert MixinTable.empty().num_blocks == 0


def test_a_damaged_cache_is_made_again(tmp_path, caplog):
    built = load(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    draws = np.random.default_rng(5)
    flipped = [bytearray(whole) for _ in range(40)]
    for content in flipped:
        content[draws.integers(len(content))] ^= 1 << draws.integers(8)
    damages = [b"", b"no archive", *(whole[:cut] for cut in draws.integers(len(whole), size=20)), *map(bytes, flipped)]
    num_noticed = 0
    for content in damages:
        path.write_bytes(content)
        caplog.clear()
        assert_equal(load(tmp_path), built)
        num_noticed += f"{path} is damaged" in caplog.text
        assert_equal(load(tmp_path, rows=ROWS if content in flipped else []), built)
    assert num_noticed >= 22 + 20
