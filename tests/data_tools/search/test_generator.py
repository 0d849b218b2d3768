"""Examples by address, the generator protocol, and external generators."""

import hashlib
import multiprocessing
import pickle
import random

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.search import generator
from data_tools.search.generator import BUILTIN_VERSION, ExampleGenerator, SearchGenerator, generate_example
from data_tools.search.prompts import parse_prompt
from tests.support.paths import SUPPORT

SIZES = {"max_input_size": 65, "max_lookahead": 8}
STAND_IN = "external_generator:StandInGenerator"


@pytest.fixture(autouse=True)
def importable_stand_ins(monkeypatch):
    monkeypatch.syspath_prepend(str(SUPPORT))


def source(generator=None, **changes):
    return ExampleGenerator(generator, **{**SIZES, "seed": 1, "purpose": "train", **changes})


@pytest.mark.parametrize("stage", [1, 2, 5, 8])
def test_text_answers_and_numbers_of_an_example_agree(stage):
    for index in range(100):
        example = source().example(index, stage)
        prompt = parse_prompt(example.input_text)
        assert prompt.path == [prompt.start]
        assert sorted(prompt.answers()) == sorted(example.output_texts)
        assert len(example.labels) == len(example.output_texts) == len(set(example.output_texts))
        assert example.labels == sorted(example.labels) and min(example.labels) >= 1
        assert prompt.lookahead() == example.lookahead
        assert len(prompt.edges) == example.num_edges
        assert not example.input_text.endswith(" ") and not any(" " in text for text in example.output_texts)


def test_several_answers_occur_and_stand_in_no_meaningful_order():
    several = [e for e in (source().example(i, 8) for i in range(4000)) if len(e.labels) > 1]
    assert 0.01 < len(several) / 4000 < 0.08
    shortest_first = sum(path_lengths(e)[0] == min(path_lengths(e)) for e in several if len(set(path_lengths(e))) > 1)
    uneven = sum(len(set(path_lengths(e))) > 1 for e in several)
    assert uneven > 10 and 0.25 < shortest_first / uneven < 0.75


def path_lengths(example):
    """Edges from each answer to the goal."""
    prompt = parse_prompt(example.input_text)
    lengths = []
    for answer in example.output_texts:
        level, length = {answer}, 0
        while prompt.goal not in level:
            level, length = {b for a, b in prompt.edges if a in level}, length + 1
        lengths.append(length)
    return lengths


def test_an_example_is_a_function_of_its_address():
    ours, theirs = source(), pickle.loads(pickle.dumps(source()))
    addresses = [(3, 8, 0), (3, 8, 1), (3, 7, 0), (4, 8, 0)]
    examples = [ours.example(*address) for address in addresses]
    assert examples == [theirs.example(*address) for address in reversed(addresses)][::-1]
    others = [source(seed=2).example(3, 8, 0), source(purpose="split/eval").example(3, 8, 0)]
    texts = [e.input_text for e in examples + others]
    assert len(set(texts)) == len(texts)


def test_stages_of_the_same_size_do_not_repeat_examples():
    """Of 19 edges, stages 4 to 6 of 64 allow one: only the address tells their examples apart."""
    texts = {source(max_lookahead=64).example(index, stage).input_text for index in range(20) for stage in (4, 5, 6)}
    assert len(texts) == 60


def test_examples_of_neighbouring_indices_are_unrelated():
    """No text, name or lookahead carries over from one index to the next."""
    lookaheads = np.array([source().example(i, 8).lookahead for i in range(3000)])
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(lookaheads[lag:], lookaheads[:-lag])[0, 1]) < 0.06


def test_golden_examples():
    """Fails when an address gives another example than before: then raise BUILTIN_VERSION and pin the new hashes."""
    golden = {
        ("train", 0, 1): "1fe7ae6673927889",
        ("train", 12345, 64): "7d5a507a34a4b97e",
        ("split/eval", 7, 64): "1fa7eabebef04720",
    }
    found = {}
    for purpose, index, stage in golden:
        made = ExampleGenerator(max_input_size=384, max_lookahead=64, seed=1337, purpose=purpose).example(index, stage)
        text = "\n".join([made.input_text, *made.output_texts, str(made.labels), str(made.lookahead)])
        found[purpose, index, stage] = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (BUILTIN_VERSION, found) == ("1", golden)


def test_protocol_of_the_built_in_generator():
    first, second = SearchGenerator(65, 5), SearchGenerator(65, 5)
    batch = first.generate_batch("search", 4, alpha=1.0, max_lookahead=8)
    assert [e.input_text for e in batch] == [
        second.generate_batch("search", 1, reserved_inputs=set(), alpha=1.0, max_lookahead=8)[0].input_text
        for _ in range(4)
    ]
    assert len({e.input_text for e in batch}) == 4
    other = SearchGenerator(65, 5)
    kept = other.generate_batch("search", 4, reserved_inputs={batch[1].input_text}, alpha=1.0, max_lookahead=8)
    assert [a == b for a, b in zip(batch, kept, strict=True)] == [True, False, True, True]
    with pytest.raises(UserError, match="unknown task 'dfs'"):
        first.generate_batch("dfs", 1, alpha=1.0, max_lookahead=8)


def test_the_built_in_generator_gives_up_where_all_is_reserved(monkeypatch):
    class Everything:
        def __contains__(self, text):
            return True

    monkeypatch.setattr(generator, "MAX_ATTEMPTS", 3)
    with pytest.raises(UserError, match="3 examples in a row are reserved"):
        SearchGenerator(65, 5).generate_batch("search", 1, reserved_inputs=Everything(), alpha=1.0, max_lookahead=8)


def test_generate_example_is_what_the_source_gives():
    made = generate_example(1, "train", 9, 2, 3, alpha=0.25, max_input_size=65, max_lookahead=8)
    assert made == source().example(9, 2, 3)


@pytest.mark.parametrize("stage", [0, 9, -1])
def test_a_stage_that_does_not_exist_is_refused(stage):
    with pytest.raises(UserError, match=f"stage is {stage}: expected 1 … 8"):
        source().example(0, stage)


@pytest.mark.parametrize("name", [None, STAND_IN])
def test_sizes_without_room_are_refused(name):
    with pytest.raises(UserError, match="max_input_size is 7"):
        source(name, max_input_size=7)
    with pytest.raises(UserError, match="allows no edge"):
        source(name, max_input_size=20).example(0, 1)


def test_external_generator_gives_examples_by_address():
    first, second = source(STAND_IN), source(STAND_IN)
    assert first.is_external and first.name == STAND_IN and not source().is_external
    assert first.identity().version == hashlib.sha256((SUPPORT / "external_generator.py").read_bytes()).hexdigest()
    addresses = [(index, stage, attempt) for index in range(10) for stage in (4, 8) for attempt in (0, 1)]
    examples = [first.example(*address) for address in addresses]
    assert examples == [second.example(*address) for address in reversed(addresses)][::-1]
    assert len({e.input_text for e in examples}) == len(examples)
    for example in examples:
        prompt = parse_prompt(example.input_text)
        assert sorted(example.output_texts) == sorted(prompt.answers())
        assert (example.num_edges, example.lookahead) == (len(prompt.edges), prompt.lookahead())
    assert any(len(e.output_texts) > 1 for e in examples) and max(e.lookahead for e in examples) > 3


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_sources_work_in_worker_processes(method):
    for name in (None, STAND_IN):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(source(name).example, (5, 8, 0)) == source(name).example(5, 8, 0)


def test_the_built_in_generator_leaves_global_generators_alone():
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    source().example(0, 8)
    SearchGenerator(65, 5).generate_batch("search", 2, alpha=1.0, max_lookahead=8)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    source(STAND_IN).example(0, 8)  # why external generators belong in worker processes
    assert (random.getstate(), np.random.get_state()[1].tolist()) != before


@pytest.mark.parametrize(
    "name, message",
    [
        ("external_generator", "expected package.module:ClassName"),
        (":StandInGenerator", "expected package.module:ClassName"),
        ("no_such_module:Generator", "cannot import 'no_such_module'; .* PYTHONPATH"),
        ("external_generator:Missing", "has no 'Missing'"),
        ("external_generator:FORMS", "does not follow the protocol"),
        ("external_generator:NoBatchGenerator", r"expected .*\.generate_batch\(.* but it is not callable"),
        ("external_generator:WrongSignatureGenerator", "does not follow the protocol: .* reserved_inputs"),
        ("external_generator:NoSeedGenerator", "does not follow the protocol: .* seed"),
    ],
)
def test_bad_external_generators_are_refused_before_work(name, message):
    with pytest.raises(UserError, match=message):
        source(name).identity()


@pytest.mark.parametrize(
    "name, message",
    [
        ("FieldlessGenerator", "without input_text, output_texts, labels"),
        ("NoAnswerGenerator", "at least one string"),
        ("GreedyGenerator", "asked for a list of 1 example"),
        ("OtherTextGenerator", "cannot be read back: not a search prompt"),
    ],
)
def test_bad_examples_of_external_generators_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        source(f"external_generator:{name}").example(0, 8)


def test_a_failure_of_an_external_generator_names_the_seed():
    failing = source("external_generator:FailingGenerator")
    with pytest.raises(UserError, match=r"FailingGenerator failed with RuntimeError: no luck \(seed \d+, alpha 1,"):
        for index in range(200):
            failing.example(index, 8)
