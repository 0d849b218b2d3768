"""The shape of the code: rooms, arrows between them that point downward, small files, small functions."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter

import pytest

from tests.support.source_code import MODULES, PACKAGES, SOURCES, imported_names

ROOMS = {".".join(module.split(".")[:2]) for module in MODULES if module.count(".") == 2}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# What each room of ds_train, and the commands beside them, may import of the others; all may use data_tools.base.
SAMPLES = {"data_tools.samples"}
TEXT = {"data_tools.corpus"}
ARROWS = {
    "data_tools.base": set(),
    "data_tools.search": set(),
    "data_tools.corpus": set(),
    "data_tools.runs": set(),
    "data_tools.samples": {"data_tools.search", *TEXT},
    "data_tools.compare": {"data_tools.runs"},
    "data_tools.inspect": {"data_tools.search", "data_tools.runs", *TEXT, *SAMPLES},
    "data_tools.adopt": {"data_tools.search", *TEXT},
    "data_tools": {"data_tools.search", "data_tools.runs", *TEXT},
    "ds_train.config": set(),
    "ds_train.ranks": set(),
    "ds_train.model": {*TEXT},  # the tokenizer that is saved beside a model
    "ds_train.step": {"ds_train.model", "ds_train.ranks", "ds_train.config", *SAMPLES},
    "ds_train.checkpoints": {"ds_train.step", "ds_train.model", "ds_train.ranks", *TEXT, *SAMPLES},
    "ds_train.training": {
        "ds_train.step", "ds_train.checkpoints", "ds_train.config", "ds_train.model", "ds_train.ranks", *SAMPLES,
    },
    "ds_train.run": {
        "ds_train.training", "ds_train.checkpoints", "ds_train.step", "ds_train.model", "ds_train.ranks",
        "ds_train.config", *TEXT,
    },
    "ds_train.phases": {
        "ds_train.run", "ds_train.training", "ds_train.checkpoints", "ds_train.step", "ds_train.model",
        "ds_train.ranks", "ds_train.config", "data_tools.search", "data_tools.runs", *TEXT, *SAMPLES,
    },
    "ds_train": {"ds_train.phases", "ds_train.checkpoints", "ds_train.ranks", "ds_train.config", "data_tools.runs"},
    "ds_train.experiment": {
        "data_tools", "ds_train", "ds_train.phases", "ds_train.checkpoints", "ds_train.model", "ds_train.ranks",
        "ds_train.config", "data_tools.compare", "data_tools.runs", "data_tools.search", *TEXT,
    },
}  # fmt: skip
# Everything else reaches DeepSpeed through these, for the reason given.
DEEPSPEED_USERS = {
    "ds_train.checkpoints.save",
    "ds_train.checkpoints.saved_partitions",  # objects in its files
    "ds_train.config.json_checks",  # its own models of the JSON's blocks
    "ds_train.ranks.collectives",  # process group
    "ds_train.step.engine",  # initialize
    "ds_train.run.fingerprints",  # its version, for the checkpoint
    "ds_train.step.losses",  # cross-entropy kernel
}
# Pure in numbers: usable, and tested, without torch, files or processes.
PURE = {
    "data_tools.base.rng", "data_tools.samples.samplers", "ds_train.phases.curriculum", "ds_train.config.layout",
    "ds_train.config.schedule",
}  # fmt: skip


def packages_of(module: str) -> set[str]:
    return {name.split(".")[0] for name in imported_names(MODULES[module])}


OWN_IMPORTS = {module: (imported_names(tree) & set(MODULES)) - set(PACKAGES) for module, tree in MODULES.items()}


def room_of(module: str) -> str:
    """A module's folder; commands, which are in no room, are in the package itself."""
    place = ".".join(module.split(".")[:2])
    return place if place in ROOMS else module.split(".")[0]


def reachable(module: str) -> set[str]:
    """All own modules that come with an import of this one."""
    found, pending = set(), [module]
    while pending:
        new = OWN_IMPORTS[pending.pop()] - found
        found |= new
        pending += new
    return found


def test_modules_are_found():
    assert {"data_tools.base.rng", "ds_train.training.loop", "ds_train.pptrain"} <= set(MODULES)
    assert OWN_IMPORTS["ds_train.training.loop"] >= {"ds_train.step.engine", "ds_train.checkpoints.state"}
    assert ROOMS | set(PACKAGES) == set(ARROWS)


def test_rooms_import_what_is_below_them():
    """Exactly the arrows of the table, and these make no circle."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, names in OWN_IMPORTS.items():
        found[room_of(module)] |= {room_of(name) for name in names} - {room_of(module), "data_tools.base"}
    assert {room: found[room] for room in ARROWS} == ARROWS
    assert list(TopologicalSorter(ARROWS).static_order())


def test_rooms_say_what_they_are_for_and_load_nothing():
    for room in ROOMS - {"data_tools.inspect"}:  # which stands in for the standard library's: see there
        (statement,) = MODULES[room].body
        assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant), room


def test_data_tools_never_import_training_code():
    """Which samples there are and what is in them is numbers and text: it can be looked at without torch."""
    outside = {"ds_train", "deepspeed", "torch"}
    assert [m for m in MODULES if m.startswith("data_tools.") and packages_of(m) & outside] == []


def test_deepspeed_is_imported_where_it_is_listed():
    assert {module for module in MODULES if "deepspeed" in packages_of(module)} == DEEPSPEED_USERS


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_stay_pure(module):
    outside = {"torch", "transformers", "deepspeed", "pathlib", "os", "multiprocessing"}
    for name in {module, *reachable(module)} - {"data_tools.base.errors"}:
        assert not packages_of(name) & outside, name


def test_micro_batches_know_nothing_of_engines_or_ranks():
    rooms = {room_of(name) for name in reachable("ds_train.step.micro_batch")}
    assert not rooms & {"ds_train.ranks", "ds_train.training", "ds_train.checkpoints"}
    assert "ds_train.step.engine" not in reachable("ds_train.step.stream")


def test_one_place_builds_the_engine_and_one_saves_it():
    """``deepspeed.initialize`` and the engine's saving occur once each; checkpoints of any layout are read by us."""
    calls: dict[str, set[str]] = {"initialize": set(), "save_checkpoint": set(), "load_checkpoint": set()}
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                calls[node.func.attr].add(module)
    assert calls == {
        "initialize": {"ds_train.step.engine"},
        "save_checkpoint": {"ds_train.checkpoints.save"},
        "load_checkpoint": set(),
    }


def test_imports_have_no_cycles():
    assert list(TopologicalSorter(OWN_IMPORTS).static_order())


def test_files_are_short():
    lengths = {module: len(source.splitlines()) for module, source in SOURCES.items()}
    assert {module: length for module, length in lengths.items() if length > MAX_FILE_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_short(package):
    long = {}
    for module, tree in MODULES.items():
        for node in ast.walk(tree) if module.startswith(package) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long[f"{module}.{node.name}"] = length
    assert long == {}


def test_no_global_random_generators():
    """Draws come from data_tools.base.rng; the global generators are only saved, restored and seeded around models."""
    allowed = {"getstate", "setstate", "get_rng_state", "set_rng_state", "fork_rng", "manual_seed", "seed", "Philox"}
    found = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr in allowed | {"random"}:
                continue
            owner = ast.unparse(node.value)
            if owner in ("random", "np.random", "numpy.random", "torch.random") or (
                owner == "torch" and node.attr in ("rand", "randn", "randint", "randperm")
            ):
                found.append(f"{module}:{node.lineno} {owner}.{node.attr}")
    assert found == []
