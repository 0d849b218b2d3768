"""Tests are where their modules are, and use each other's helpers only through tests/support."""

import ast

from tests.support.paths import REPOSITORY
from tests.support.source_code import MODULES, imported_names

MAX_FILE_LINES = 300
# Modules without a test file of their own → the one that tests them.
TESTED_IN = {
    "data_tools.adopt.checkpoints": "data_tools/adopt/test_adopt",
    "data_tools.adopt.packs": "data_tools/adopt/test_adopt",
    "data_tools.adopt.plan": "data_tools/adopt/test_adopt",
    "data_tools.adopt.splits": "data_tools/adopt/test_adopt",
    "data_tools.base.errors": "data_tools/base/test_command_line",
    "data_tools.base.foreign": "data_tools/test_build_pretrain",
    "data_tools.base.hub": "data_tools/corpus/test_hub_files",
    "data_tools.base.kinds": "ds_train/config/test_bad_values",
    "data_tools.base.rng": "data_tools/search/test_graphs",
    "data_tools.base.text_table": "data_tools/test_summarize_run",
    "data_tools.base.version": "ds_train/test_main",
    "data_tools.compare.axes": "data_tools/compare/test_conditions",
    "data_tools.compare.drawing": "data_tools/compare/test_results",
    "data_tools.compare.estimates": "data_tools/compare/test_comparison",
    "data_tools.compare.grid": "data_tools/compare/test_results",
    "data_tools.compare.promotions": "data_tools/compare/test_results",
    "data_tools.compare.scaling_report": "data_tools/compare/test_results",
    "data_tools.compare.verdict": "data_tools/compare/test_comparison",
    "data_tools.corpus.pack_progress": "data_tools/corpus/test_pack_resume",
    "data_tools.corpus.token_stream": "data_tools/test_build_pretrain",
    "data_tools.inspect.lengths": "data_tools/inspect/test_inspect",
    "data_tools.inspect.samples": "data_tools/inspect/test_inspect",
    "data_tools.inspect.terminal": "data_tools/inspect/test_inspect_output",
    "data_tools.inspect.token_view": "data_tools/inspect/test_inspect_output",
    "data_tools.runs.facts": "data_tools/test_summarize_run",
    "data_tools.runs.panels": "data_tools/runs/test_pictures",
    "data_tools.runs.report": "data_tools/test_plot_run",
    "data_tools.runs.settings": "data_tools/runs/test_logs",
    "data_tools.runs.status": "data_tools/test_status",
    "data_tools.search.examples": "data_tools/search/test_external",
    "data_tools.search.flags": "data_tools/test_build_data_splits",
    "ds_train.checkpoints.exporting": "ds_train/test_export",
    "ds_train.checkpoints.rank_rng": "ds_train/checkpoints/test_state",
    "ds_train.checkpoints.saved_partitions": "ds_train/checkpoints/test_restore",
    "ds_train.config.json_checks": "ds_train/config/test_deepspeed_json",
    "ds_train.config.layout": "ds_train/config/test_batch",
    "ds_train.config.phase_flags": "ds_train/config/test_flags",
    "ds_train.config.trainer_flags": "ds_train/config/test_flags",
    "ds_train.experiment.conditions": "ds_train/experiment/test_plan",
    "ds_train.experiment.forecast": "ds_train/experiment/test_results",
    "ds_train.experiment.sizes": "ds_train/experiment/test_results",
    "ds_train.experiment.trainers": "ds_train/experiment/test_plan",
    "ds_train.model.rows": "ds_train/step/test_probe",
    "ds_train.model.small_config": "ds_train/model/test_isolation",
    "ds_train.phases.early_check": "ds_train/experiment/test_plan",
    "ds_train.phases.evaluation": "ds_train/test_evaluate",
    "ds_train.phases.generator_check": "ds_train/phases/test_external_generator",
    "ds_train.phases.launch_check": "ds_train/test_preflight",
    "ds_train.phases.pptrain": "system/test_entry_points",
    "ds_train.phases.score_table": "ds_train/phases/test_scores",
    "ds_train.pptrain": "system/test_entry_points",
    "ds_train.pretrain": "system/test_entry_points",
    "ds_train.run.fingerprints": "ds_train/config/test_flags",
    "ds_train.run.inputs": "ds_train/run/test_bad_input",
    "ds_train.run.start": "ds_train/run/test_assembly",
}
TESTS = {path: path.read_text() for path in sorted((REPOSITORY / "tests").rglob("*.py"))}


def _has_test(place: str) -> bool:
    return (REPOSITORY / "tests" / f"{place}.py").exists()


def test_every_module_has_a_test_file_or_is_listed() -> None:
    mirrors = {}
    for module in MODULES:
        *rooms, name = module.split(".")
        if len(rooms) > 0 and name != "__main__" and not (REPOSITORY / module.replace(".", "/")).is_dir():
            mirrors[module] = f"{'/'.join(rooms)}/test_{name}"
    assert {module for module, mirror in mirrors.items() if not _has_test(mirror)} == TESTED_IN.keys()
    assert [test for test in TESTED_IN.values() if not _has_test(test)] == []


def test_tests_import_no_other_tests() -> None:
    found = [
        (path.name, name)
        for path, text in TESTS.items()
        for name in imported_names(ast.parse(text))
        if name.startswith("tests.") and name.split(".")[-1].startswith(("test_", "conftest"))
    ]
    assert found == []


def test_test_files_are_short() -> None:
    lengths = {path.name: len(text.splitlines()) for path, text in TESTS.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}
