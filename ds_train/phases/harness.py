"""Tasks of lm-evaluation-harness on the weights of a checkpoint, as on its export, which need not be made."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError, first_line
from data_tools.corpus.tokenizer import TextTokenizer
from ds_train.checkpoints.exporting import settle_config
from ds_train.checkpoints.weights import Weights, model_with_weights
from ds_train.model.causal_lm import cast_parameters, load_model_config
from ds_train.ranks.world import World

Scores = dict[str, dict[str, float]]  # task → metric → value


class Harness:
    """Some tasks of the harness.

    Args:
        names: of tasks, tags or groups.
        directory: of more tasks, in YAML files.

    Raises:
        UserError: there are several ranks, the harness is not installed, or lacks a task or its data.
    """

    def __init__(self, names: Sequence[str], directory: Path | None, world: World) -> None:
        if world.size > 1:
            raise UserError(f"--tasks runs in one process, not {world.size}: start it with python.")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                f'--tasks needs lm-evaluation-harness ({error}): pip install --editable ".[harness]".'
            ) from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._names = list(names)
        self._manager = TaskManager(include_path=directory and str(directory))
        for name in names:
            if name not in self._manager.all_tasks:
                raise UserError(
                    f"--tasks {name}: there is no such task"
                    + did_you_mean(name, self._manager.all_tasks, "; --tasks_dir names a directory of your own.")
                )
        try:
            self._manager.load(self._names)  # its data as well
        except Exception as error:  # of the network, of datasets, of a task's file
            raise UserError(f"--tasks {' '.join(names)} cannot be loaded: {first_line(error)}") from error

    def scores(
        self,
        weights: Weights,
        tokenizer: TextTokenizer,
        *,
        seq_len: int,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int,
    ) -> Scores:
        """Every metric of every task, and of groups over theirs."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        config = load_model_config(str(weights.description))
        settle_config(config, tokenizer.eos_id, seq_len)
        model = model_with_weights(weights, config).eval()
        cast_parameters(model, dtype)
        with tempfile.TemporaryDirectory() as directory:
            tokenizer.save(Path(directory), max_length=seq_len, as_trained=True)
            lm = HFLM(
                pretrained=model.to(device),
                tokenizer=AutoTokenizer.from_pretrained(directory),
                max_length=seq_len,
                batch_size=batch_size,
            )
        found = simple_evaluate(lm, tasks=self._names, task_manager=self._manager, log_samples=False)
        return {task: _metrics(values) for task, values in found["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """The metrics among a task's results; the harness writes ``acc,none`` where nothing filters answers."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name.removesuffix(",none"): value for name, value in numbers.items() if name != "sample_len"}
