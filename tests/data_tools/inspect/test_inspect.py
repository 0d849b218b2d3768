"""What ``data_tools.inspect`` shows is what the trainers train on: the same samples, tokens and loss weights."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.base.files import sha256_of_file
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.samples.documents import Document, encode_examples, example_documents
from data_tools.samples.readers import c4_document, training_source
from data_tools.samples.samplers import Cursor, SampleKind
from data_tools.search.splits import Splits, find_data_dir, row_line
from ds_train.phases import pptrain, pretrain
from ds_train.phases.evaluation import heldout_examples
from ds_train.ranks.world import World
from ds_train.run.record import LaunchRecord
from tests.support import tiny
from tests.support.checkpoints import full_state

WORLD = World(0, 0, 1)
TOKEN_LINE = re.compile(r"^ *(no target|weight \S+)? │(.*)│$")
Token = tuple[str, float | None]  # its text, and its weight as a target


@pytest.fixture(scope="module")
def tokenizer(tiny_scratch: Path):
    return load_tokenizer(str(tiny_scratch / "tokenizer"))


def tokens_in(output: str) -> list[Token]:
    """Every token that is shown, in order."""
    tokens: list[Token] = []
    weight: float | None = None
    for line in filter(None, map(TOKEN_LINE.match, output.splitlines())):
        if line[1]:
            weight = None if line[1] == "no target" else float(line[1].removeprefix("weight "))
        tokens += [(text, weight) for text in line[2].split("│")]
    return tokens


def sections(output: str) -> Iterator[str]:
    """What is shown under each heading, with the heading."""
    return iter(re.split(r"(?m)^── ", output)[1:])


def assert_shows(output: str, tokenizer, documents: Sequence[Document]) -> None:
    """All tokens of documents that are trained, and the answers of those that are only scored."""
    expected: list[Token] = []
    for document in sorted(documents, key=lambda document: not document.weights.any()):
        weights = [None, *document.weights.tolist()]
        all_tokens = list(zip(tokenizer.pieces(document.tokens.tolist()), weights, strict=True))
        expected += all_tokens if document.weights.any() else all_tokens[-document.answer_targets :]
    found = tokens_in(output)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [w for _, w in found] == [w if w is None else pytest.approx(w, rel=1e-5) for _, w in expected]


def trained_by(phase, scratch: Path, *flags: object):
    """Sampler and readers of a run with these flags, built by the trainer itself."""
    given = [*tiny.flags(scratch, precision=None), "--global_batch", "4", "--micro_batch", "4", *map(str, flags)]
    return phase.prepare(given, WORLD).make_setup()


@pytest.mark.parametrize(
    "flags", [[], ["--seed", 5, "--train_answer", "random"], ["--seq_len", 130, "--accuracy", "first"]], ids=str
)
def test_stream_is_what_pptrain_reads(tiny_scratch, tokenizer, shown, flags):
    reader = trained_by(pptrain, tiny_scratch, *flags).readers[SampleKind.STREAM]
    where = ["--scratch_dir", tiny_scratch, "--tokenizer", tiny_scratch / "tokenizer", "--seq_len", tiny.SEQ_LEN]
    num_documents, num_overflows, trained_first = [], 0, []
    for stage in (1, 4, 8):
        indices = range(100, 130)
        output = shown("stream", *where, *flags, "--stage", stage, "--index", 100, "--count", 30, "--show", "tokens")
        for index, part, sample in zip(indices, sections(output), reader.read(indices, stage), strict=True):
            assert part.startswith(f"stream {index} at stage {stage} of 8 ")
            assert_shows(part, tokenizer, sample.documents)
            assert ("attempt 0\n" in part) == (not sample.overflows)
            num_documents.append(len(sample.documents))
            num_overflows += len(sample.overflows)
            trained_first += [d.is_first_answer for d in sample.documents if d.weights.any()]
    assert (max(num_documents) > 1) == ("--accuracy" not in flags)  # several right answers, all scored
    assert (num_overflows > 0) == (130 in flags)
    assert all(trained_first) == ("random" not in flags)


def test_reserved_prompts_are_passed_over_as_in_training(tiny_scratch, tmp_path, tokenizer, shown):
    """An eval row that happens to be sample 3 of the run's stream."""
    directory = Path(shutil.copytree(find_data_dir(tiny_scratch), tmp_path / "splits"))
    example = training_source(None, max_input_size=48, max_lookahead=8, seed=1337).example(3, 8)
    path, meta = directory / "eval.jsonl", json.loads((directory / "meta.json").read_text())
    rows = [row_line(example, alpha=1.0, stage=8, seed=12345), *path.read_bytes().splitlines(keepends=True)[1:]]
    path.write_bytes(b"".join(rows))
    meta["files"]["eval.jsonl"] |= {"num_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (directory / "meta.json").write_text(json.dumps(meta))
    reader = trained_by(pptrain, tiny_scratch, "--data_dir", directory).readers[SampleKind.STREAM]
    output = shown("stream", "--data_dir", directory, "--tokenizer", tiny_scratch / "tokenizer", "--stage", 8,
                   "--index", 3, "--show", "tokens")  # fmt: skip
    assert "attempt 1 (0 were longer than seq_len, 1 reserved)" in " ".join(output.split())
    assert_shows(output, tokenizer, reader.read([3], 8)[0].documents)


def test_stream_without_splits_is_the_same_stream(tiny_scratch, shown):
    pick = ["--tokenizer", tiny_scratch / "tokenizer", "--seq_len", tiny.SEQ_LEN, "--stage", 5, "--index", 12]
    of_run = shown("stream", *pick, "--scratch_dir", tiny_scratch)
    alone = shown("stream", *pick, "--max_input_size", 48, "--max_lookahead", 8)
    assert alone.endswith(of_run) and "not skipped" in " ".join(alone[: -len(of_run)].split())


@pytest.mark.parametrize(
    "flags",
    [
        ["--mixin_percent", 0.3],
        ["--mixin_percent", 0.1, "--mixin_schedule", "linear", "--mixin_end", 0.9, "--mixin_loss", "answer"],
        ["--mixin_percent", 0.9, "--mixin_schedule", "exponential", "--mixin_end", 0.1, "--mixin_loss", "perseq"],
        [
            "--mixin_percent",
            0.5,
            "--mixin_pack",
            "single",
            "--mixin_loss",
            "weighted",
            "--seed",
            3,
            "--c4_order",
            "seed",
        ],
        ["--mixin_percent", 0.4, "--mixin_source", "generator", "--seed", 7],
        ["--mixin_percent", 0.4, "--mixin_source", "generator", "--mixin_pack", "single", "--mixin_loss", "answer"],
    ],
    ids=["constant", "linear", "exponential", "single", "fresh", "fresh single"],
)
def test_mixture_is_what_pretrain_reads(tiny_scratch, tokenizer, shown, flags):
    run = ["--total_steps", 6, *flags]
    setup = trained_by(pretrain, tiny_scratch, "--pptrain_checkpoint", "none", *run)
    cursor, planned = Cursor(), []
    for step in range(1, 7):
        plan = setup.sampler.plan(cursor, step)
        planned += [(step, SampleKind(s), int(n)) for s, n in zip(plan.sources, plan.indices, strict=True)]
        cursor = plan.next_cursor
    assert {source for _, source, _ in planned} == {SampleKind.C4, SampleKind.MIXIN}

    pick = ["--global_batch", 4, "--index", 3, "--count", 99, "--show", "tokens"]
    parts = sections(shown("mixture", "--scratch_dir", tiny_scratch, *run, *pick))
    for number, (step, source, index) in enumerate(planned[3:], 3):
        (sample,) = setup.readers[source].read([index], 0)
        for document in sample.documents:
            part = next(parts)
            kind = "c4" if source == SampleKind.C4 else "mixin"
            assert re.match(rf"sample {number} of the run \(step {step}\): {kind} block {index}\b", part)
            assert_shows(part, tokenizer, [document])
    assert next(parts, None) is None


RUN = "--seed 5 --global_batch 4 --micro_batch 2".split()
OF_PHASE = {
    "pptrain": ("stream", "--train_answer random --accuracy first --generator_options max_edges=9".split()),
    "pretrain": (
        "mixture",
        "--pptrain_checkpoint none --total_steps 6 --mixin_percent 0.4 --mixin_loss answer".split(),
    ),
    "pretrain on fresh examples": (
        "mixture",
        "--pptrain_checkpoint none --total_steps 6 --mixin_percent 0.4 --mixin_source generator".split(),
    ),
}


@pytest.mark.parametrize("phase", OF_PHASE)
def test_a_run_is_shown_with_its_own_settings(tiny_scratch, tmp_path, shown, phase):
    command, flags = OF_PHASE[phase]
    module = pptrain if phase == "pptrain" else pretrain
    prepared = module.prepare([*tiny.flags(tiny_scratch), *RUN, *flags], WORLD)
    LaunchRecord(prepared.all_flags, prepared.sources, prepared.inputs.engine).record(tmp_path, WORLD, full_state(), 0)
    given = ["--scratch_dir", tiny_scratch, "--tokenizer", tiny_scratch / "tokenizer", "--seed", 5]
    given += flags if phase == "pptrain" else flags[2:]
    given += ["--seq_len", tiny.SEQ_LEN] if phase == "pptrain" else ["--global_batch", 4]
    pick = ["--index", 1, "--count", 9]
    assert shown(command, "--run", tmp_path, *pick) == shown(command, *given, *pick)
    # Flags win over the run's.
    assert shown(command, "--run", tmp_path, "--seed", 6, *pick) == shown(command, *given, "--seed", 6, *pick)


@pytest.mark.parametrize("source", ["table", "generator"])
def test_synthetic_blocks_by_their_own_number(tiny_scratch, tokenizer, shown, source):
    flags = ["--mixin_source", source]
    setup = trained_by(pretrain, tiny_scratch, "--pptrain_checkpoint", "none", "--total_steps", 6, *flags)
    pick = ["--blocks", "--index", 2, "--count", 3, "--show", "tokens"]
    parts = sections(shown("mixture", "--scratch_dir", tiny_scratch, *flags, *pick))
    for block, sample in zip((2, 3, 4), setup.readers[SampleKind.MIXIN].read([2, 3, 4], 0), strict=True):
        for number, document in enumerate(sample.documents, 1):
            part = next(parts)
            assert re.match(rf"mixin block {block}, example {number} of {len(sample.documents)}\b", part)
            assert_shows(part, tokenizer, [document])
    assert next(parts, None) is None


@pytest.mark.parametrize("name", ["eval", "test"])
def test_splits_are_as_they_are_evaluated(tiny_scratch, tokenizer, shown, name):
    rows = Splits(find_data_dir(tiny_scratch)).rows(name)
    heldout = heldout_examples(rows, tokenizer, seq_len=10_000, subset_size=None, seed=0)
    output = shown("split", "--scratch_dir", tiny_scratch, "--tokenizer", tiny_scratch / "tokenizer", "--split", name,
                   "--count", 100, "--seq_len", 100, "--show", "tokens")  # fmt: skip
    parts = list(sections(output))
    assert any(len(documents) > 1 for documents in heldout.samples)
    for number, (part, documents) in enumerate(zip(parts, heldout.samples, strict=True)):
        assert part.startswith(f"{name} {number} of {len(rows)} (stage 8, alpha 1, seed 12345)")
        assert_shows(part, tokenizer, documents)
        is_left_out = max(len(document.tokens) for document in documents) > 100
        assert ("longer than seq_len 100" in part) == is_left_out
    assert 0 < sum("longer than seq_len" in part for part in parts) < len(parts)


@pytest.mark.parametrize("loss", ["lm", "answer", "weighted", "perseq"])
def test_rows_of_mixin_are_as_pretraining_reads_them(tiny_scratch, tokenizer, shown, loss):
    rows = Splits(find_data_dir(tiny_scratch)).rows("mixin")
    output = shown("split", "--scratch_dir", tiny_scratch, "--tokenizer", tiny_scratch / "tokenizer", "--split",
                   "mixin", "--index", 145, "--count", 9, "--mixin_loss", loss, "--show", "tokens")  # fmt: skip
    for number, part in zip(range(145, 150), sections(output), strict=True):
        row = rows[number]
        (encoded,) = encode_examples(tokenizer, [row["input_text"]], [row["output_texts"][:1]])
        assert_shows(part, tokenizer, example_documents(encoded, loss=loss, seq_len=2048))


def test_blocks_with_the_ends_of_documents(tiny_scratch, tokenizer, shown):
    blocks = PackedBlocks(tiny_scratch / "data" / "c4_packed")
    seen = set()
    for flags, read, end in (([], blocks.block, 20), (["--validation"], blocks.validation_block, 6)):
        output = shown("shards", "--scratch_dir", tiny_scratch, *flags, "--index", 2, "--count", end - 2)
        for index, part in zip(range(2, end), sections(output), strict=True):
            block = read(index)
            assert part.startswith(f"{'validation' if flags else 'c4'} block {index} of {6 if flags else 200} ")
            assert_shows(part, tokenizer, [c4_document(block)])
            ends = np.flatnonzero(block == tokenizer.eos_id).tolist()
            problem = re.findall(r"(?m)^document \d+: tokens (\d+) … (\d+)(.*)", part)
            assert [int(end) for _, end, rest in problem if not rest] == ends
            assert [int(start) for start, _, _ in problem] == [0, *(end + 1 for end in ends if end < len(block) - 1)]
            assert int(problem[-1][1]) == len(block) - 1
            seen.add(len(ends))
    assert len(seen) > 1


def test_lengths_are_what_the_trainer_would_pass_over(tiny_scratch, tokenizer, shown):
    limit, stages = 130, (4, 8)
    flags = ["--max_input_size", 48, "--max_lookahead", 8, "--tokenizer", tiny_scratch / "tokenizer", "--stages", 8, 4]
    output = shown("lengths", *flags, "--num_problems", 150, "--seq_len", 100, limit)
    reader = trained_by(pptrain, tiny_scratch, "--seq_len", limit).readers[SampleKind.STREAM]
    table = [line.replace(",", "").replace("%", "").split() for line in output.splitlines()]
    rows = {int(row[0]): [float(cell) for cell in row[1:]] for row in table if len(row) == 13 and row[0].isdigit()}
    for stage in stages:
        samples = reader.read(range(150), stage)
        num_longer = sum(bool(sample.overflows) and sample.overflows[0].attempt == 0 for sample in samples)
        examples = [reader.source.example(index, stage) for index in range(150)]
        texts = [f"{e.input_text} {max(e.output_texts, key=len)}" for e in examples]
        tokens = sorted(len(tokenizer.encode(text)) + 1 for text in texts)
        edges = sorted(example.num_edges for example in examples)
        assert rows[stage] == [
            stage / 8, edges[74], edges[-1], sorted(map(len, texts))[74], max(map(len, texts)),
            tokens[1], tokens[74], tokens[142], tokens[148], tokens[-1],
            pytest.approx(100 * np.mean([n > 100 for n in tokens]), abs=0.05),
            pytest.approx(100 * num_longer / 150, abs=0.05),
        ]  # fmt: skip
    assert 0 < rows[8][-1] < rows[8][-2] and rows[4][-1] == 0
    assert output == shown("lengths", *flags, "--num_problems", 150, "--seq_len", 100, limit)
    assert output != shown("lengths", *flags, "--num_problems", 150, "--seq_len", 100, limit, "--seed", 2)


@pytest.mark.parametrize(
    ("size", "lookahead", "expected"),
    [(384, 64, [1, 16, 32, 48, 64]), (48, 64, [5, 16, 32, 48, 64]), (8, 2, [2, 2, 2, 2, 2])],
)
def test_stages_are_spread_from_the_first_that_allows_an_edge(size, lookahead, expected):
    source = training_source(None, max_input_size=size, max_lookahead=lookahead, seed=0)
    assert source.spread_stages() == expected
    assert source.example(0, expected[0]).num_edges == 1 or expected[0] > 1
    if expected[0] > 1:
        with pytest.raises(UserError, match="allows no edge"):
            source.example(0, expected[0] - 1)


def test_the_tokenizer_is_that_of_the_runs(tiny_scratch, tmp_path, shown):
    splits = ["--data_dir", find_data_dir(tiny_scratch, None), "--scratch_dir", tmp_path, "--seq_len", "512"]
    for run, given in (("a", "tokenizer: T"), ("b", "model_name: pythia-410m"), ("c", "tokenizer:  # default")):
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.yaml").write_text(given.replace("T", str(tiny_scratch / "tokenizer")))
    assert shown("stream", *splits) == shown("stream", *splits, "--tokenizer", tiny_scratch / "tokenizer") != ""
    assert shown("split", *splits).count("eval 0 of") == 1
    (tmp_path / "b" / "run.yaml").write_text("tokenizer: another")
    with pytest.raises(UserError, match=r"different tokenizers \(a .*, b another\); choose with --tokenizer"):
        shown("stream", *splits)
