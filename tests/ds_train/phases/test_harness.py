"""Tasks of lm-evaluation-harness on a checkpoint give what they give on its export."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.search.splits import Splits, find_data_dir
from ds_train import evaluate, export
from ds_train.phases import pptrain
from ds_train.phases.harness import Harness
from ds_train.ranks.world import World
from tests.support import tiny
from tests.support.process_group import own_process_group

TASK = """
task: first_or_last
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def test_a_harness_that_is_not_installed_or_has_several_ranks_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r'--tasks needs lm-evaluation-harness .*pip install --editable ".\[harness\]"'):
        Harness(["blimp"], None, World(0, 0, 1))
    with pytest.raises(UserError, match=r"--tasks runs in one process, not 2"):
        Harness(["blimp"], None, World(0, 0, 2))


@pytest.fixture(scope="module")
def run(tiny_scratch: Path) -> Iterator[Path]:
    pytest.importorskip("lm_eval", reason='not installed: pip install --editable ".[harness]"')
    flags = "--run_name tasks --max_steps 20 --global_batch 16 --micro_batch 16 --num_workers 0 --lr 5e-3"
    with own_process_group():
        pptrain.main([*tiny.flags(tiny_scratch), *flags.split()])
    export.main([str(tiny_scratch / "tasks"), str(tiny_scratch / "tasks_export")])
    yield tiny_scratch / "tasks"
    for name in ("tasks", "tasks_export"):
        shutil.rmtree(tiny_scratch / name)


@pytest.fixture
def tasks(run: Path, tmp_path: Path) -> Path:
    """A directory with a task: the right word, or another one of either kind of token."""
    rows = Splits(find_data_dir(run.parent)).rows("test")
    documents = [
        {"prompt": row["input_text"], "choices": [row["output_texts"][0], ("about", "book")[number % 2]]}
        for number, row in enumerate(rows)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    (tmp_path / "task.yaml").write_text(TASK.replace("FILE", str(tmp_path / "data.jsonl")))
    return tmp_path


def test_scores_are_those_of_the_export(run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    flags = f"--scratch_dir {run.parent} --tasks first_or_last --tasks_dir {tasks} --output {tasks}/report.json"
    with own_process_group():
        evaluate.main([str(run), *flags.split(), "--csv", str(tasks / "table.csv")])
    found = json.loads((tasks / "report.json").read_text())["tasks"]["first_or_last"]
    lm = HFLM(pretrained=str(run.parent / "tasks_export"), device="cpu", batch_size=1)
    wanted = simple_evaluate(
        lm, tasks=["first_or_last"], task_manager=TaskManager(include_path=str(tasks)), log_samples=False
    )["results"]["first_or_last"]
    assert found["acc"] == wanted["acc,none"] and 0 < found["acc"] < 1
    assert found["acc_stderr"] == wanted["acc_stderr,none"]
    assert f"first_or_last: acc {found['acc']:.4f}" in capsys.readouterr().out
    head, row = (tasks / "table.csv").read_text().splitlines()
    assert f",{found['acc']}," in row and "first_or_last_acc," in head


def test_tasks_that_cannot_be_loaded_are_named_before_the_work(run: Path, tasks: Path) -> None:
    with pytest.raises(UserError, match=r"--tasks lambada_openia: there is no such task; did you mean lambada_openai"):
        Harness(["lambada_openia"], None, World(0, 0, 1))
    (tasks / "data.jsonl").unlink()
    with pytest.raises(UserError, match=r"--tasks first_or_last cannot be loaded: \w+: "):
        Harness(["first_or_last"], tasks, World(0, 0, 1))
