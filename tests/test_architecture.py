"""The shape of the code: layers by imports, small files, small functions."""

import ast
from graphlib import TopologicalSorter

import pytest

from tests.support.paths import REPOSITORY

PACKAGES = ("data_tools", "ds_train")
MODULES = {
    f"{package}.{path.stem}": ast.parse(path.read_text())
    for package in PACKAGES
    for path in sorted((REPOSITORY / package).glob("*.py"))
    if path.stem != "__init__"
}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# Everything else reaches DeepSpeed through these, for the reason given.
DEEPSPEED_USERS = {
    "ds_train.checkpoints.save",
    "ds_train.config.json_checks",  # its own models of the JSON's blocks
    "ds_train.ranks.collectives",  # process group
    "ds_train.step.engine",  # initialize
    "ds_train.run.fingerprints",  # its version, for the checkpoint
    "ds_train.step.losses",  # cross-entropy kernel
    "ds_train.checkpoints.weights",  # gathers ZeRO-3 shards
}
# Pure in numbers: usable, and tested, without torch, files or processes.
PURE = {"data_tools.base.rng", "data_tools.samples.samplers", "ds_train.phases.curriculum", "ds_train.config.layout", "data_tools.base.errors",
        "ds_train.config.schedule"}  # fmt: skip
ENTRY_POINTS = {"ds_train.pptrain", "ds_train.pretrain", "ds_train.evaluate", "ds_train.export", "ds_train.audit",
                "ds_train.preflight", "ds_train.experiment.plan"}  # fmt: skip
# They ask the trainers themselves what they would refuse.
ENTRY_POINT_USERS = {
    "ds_train.preflight": {"ds_train.pptrain", "ds_train.pretrain"},
    "ds_train.experiment.plan": {"ds_train.pptrain", "ds_train.pretrain", "ds_train.evaluate"},
}


def imported_names(tree: ast.AST) -> set[str]:
    """Modules a tree imports, at its top and inside functions, with the names that may be modules themselves."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages_of(module: str) -> set[str]:
    return {name.split(".")[0] for name in imported_names(MODULES[module])}


OWN_IMPORTS = {module: imported_names(tree) & set(MODULES) for module, tree in MODULES.items()}


def reachable(module: str) -> set[str]:
    """All own modules that come with an import of this one."""
    found, pending = set(), [module]
    while pending:
        new = OWN_IMPORTS[pending.pop()] - found
        found |= new
        pending += new
    return found


def test_modules_are_found():
    assert {"data_tools.base.rng", "ds_train.training.loop", "data_tools.samples.samplers"} <= set(MODULES)
    assert OWN_IMPORTS["ds_train.training.loop"] >= {"ds_train.step.engine", "ds_train.checkpoints.state"}


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
    outside = {
        "ds_train.step.engine",
        "ds_train.ranks.collectives",
        "ds_train.training.loop",
        "ds_train.checkpoints.save",
    }
    assert not reachable("ds_train.step.micro_batch") & outside


def test_entry_points_are_imported_by_nobody_but_who_asks_them():
    users = {module: OWN_IMPORTS[module] & ENTRY_POINTS for module in MODULES}
    assert {module: used for module, used in users.items() if used} == ENTRY_POINT_USERS


def test_one_place_builds_the_engine_and_one_saves_it():
    """``deepspeed.initialize`` and the engine's checkpoint calls occur once each."""
    calls: dict[str, set[str]] = {"initialize": set(), "save_checkpoint": set(), "load_checkpoint": set()}
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                calls[node.func.attr].add(module)
    assert calls == {
        "initialize": {"ds_train.step.engine"},
        "save_checkpoint": {"ds_train.checkpoints.save"},
        "load_checkpoint": {"ds_train.checkpoints.save"},
    }


def test_imports_have_no_cycles():
    assert list(TopologicalSorter(OWN_IMPORTS).static_order())


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short(package):
    lengths = {path.name: len(path.read_text().splitlines()) for path in (REPOSITORY / package).glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


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
