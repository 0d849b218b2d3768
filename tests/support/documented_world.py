"""What pages talk of, in miniature: the values that stand for those of the pages, and where the commands find them."""

import re
import shutil
import sys
from pathlib import Path

from tests.support import tiny
from tests.support.launching import REPOSITORY
from tests.support.markdown import Command

_SEQ_LEN = str(tiny.SEQ_LEN)

# Values of flags wherever they are given; where they are not, of the commands below.
_SMALLER = {
    "--max_input_size": "48", "--max_lookahead": "8", "--max_steps": "3", "--total_steps": "3", "--seq_len": _SEQ_LEN,
    "--start_stage": "2", "--eval_subset_size": "8", "--global_batch": "8", "--micro_batch": "4", "--eval_size": "40",
    "--test_size": "20", "--mixin_size": "150", "--decay_steps": "3",
}  # fmt: skip
_FEW_BLOCKS = {"--total_steps": "12", "--effective_batch": "16", "--num_blocks": "192", "--val_blocks": "4"}
_FEW_DOCUMENTS = {"--documents": "150"}
_SMALLER_OF = {
    "data_tools.build_pretrain": _FEW_BLOCKS | {"--seq_len": _SEQ_LEN},
    "data_tools.fetch_assets": _FEW_DOCUMENTS,
    "data_tools.train_tokenizer": _FEW_DOCUMENTS,
    "data_tools.inspect": _SMALLER | {"--index": "3"},
}
_OF_A_LAUNCH = ("--num_ranks", "--num_nodes")  # all run on one rank
_TRAINING = {"--eval_subset_size": "8", "--log_every": "1", "--seq_len": _SEQ_LEN, "--warmup_steps": "2"}


class World:
    """A scratch directory that the pages' own commands fill, with documents, a tokenizer and a model to begin with."""

    def __init__(self, directory: Path) -> None:
        self.scratch, self.quickstart = directory / "scratch", directory / "quickstart"
        self._directory, self._model = directory, directory / "pythia"
        self._documents, self._stopped = directory / "books", directory / "stopped"
        self._started: set[tuple[str, str]] = set()  # scratch directory and phase of the runs so far
        self._num_runs = 0
        tiny.write_model(self._model)
        tiny.write_tokenizer(directory / "tokenizer")
        shutil.copy(directory / "tokenizer" / "tokenizer.json", self._model)
        tiny.write_documents(self._documents / "documents.jsonl")
        (directory / "notes").mkdir()
        (directory / "notes" / "note.txt").write_text((self._documents / "documents.jsonl").read_text())
        (self._stopped / "pptrain").mkdir(parents=True)
        self._values = {  # the first that fits counts
            "DIR/pptrain/STOP": str(self._stopped / "pptrain" / "STOP"),
            "/scratch/me/pretrain_on_16_ranks": str(self.scratch / "pretrain"),  # equal to what it is compared with
            # What the experiment's conditions would be; compared with itself.
            "/scratch/me/A_pptrained_mix": str(self.scratch / "pretrain"),
            "/scratch/me/B_fresh_c4": str(self.scratch / "pretrain"),
            "/scratch/me": str(self.scratch),
            "/scratch/old": str(directory / "old"),
            "step_00005000": "step_00000003",
            "mis384_look64": "mis48_look8",
            "EleutherAI/pythia-160m": str(self._model),
            "/data/books": str(self._documents),
            "/data/notes": str(directory / "notes"),
            ".venv/": f"{sys.prefix}/",
            "$(ds-train path pptrain)": str(REPOSITORY / "ds_train" / "pptrain.py"),
        }
        small = str(REPOSITORY / "ds_configs" / "experiments" / "small.yaml")
        self._words = {
            "CONFIG": small,
            "DIR": str(self.scratch),
            "report": str(directory / "report"),
            "FILE": str(REPOSITORY / "launch" / "hostfile.example"),
            "…": "",
        }

    @property
    def preparation(self) -> str:
        """Python that leaves what people bring from elsewhere: a checkpoint of Accelerate's."""
        return f"""
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForCausalLM
accelerator = Accelerator(cpu=True)
accelerator.prepare(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({str(self._model)!r})))
accelerator.save_state({str(self._directory / "old/pptrain/checkpoints/step_00000003")!r})
"""

    def text(self, text: str) -> str:
        """A text of a page, with the world's values."""
        return re.sub("|".join(map(re.escape, self._values)), lambda found: self._values[found[0]], text)

    def words(self, command: Command) -> list[str]:
        """A command's words, with the world's values."""
        return [word for word in (self._words.get(word, self.text(word)) for word in command.argv) if word]

    def variables(self, command: Command) -> dict[str, str]:
        return {name: self._words.get(value, value) for name, value in command.variables.items()}

    def arguments(self, module: str, given: list[str]) -> list[str]:
        """The arguments of one of our commands, made small, and with what it needs here if they are not given."""
        own = _SMALLER_OF.get(module, _SMALLER)
        arguments = _without(given, _OF_A_LAUNCH)
        for at, word in enumerate(arguments[:-1]):
            arguments[at + 1] = own.get(word, arguments[at + 1])
        for name, value in self._needed(module, arguments).items():
            if name not in arguments:
                arguments += [name, *([value] if value else [])]
        return arguments

    def _needed(self, module: str, given: list[str]) -> dict[str, str]:
        where = {"--scratch_dir": str(self.scratch)}
        model = {"--model_name": str(self._model), "--tokenizer": str(self._model)}
        match module.split("."):
            case ["data_tools", "build_data_splits"]:
                sizes = {"--max_input_size": "48", "--max_lookahead": "8"}
                few = {"--eval_size": "40", "--test_size": "20", "--mixin_size": "150", "--workers": "1"}
                return where | sizes | few | {"--overwrite": ""}
            case ["data_tools", "build_pretrain"]:
                from_files = {"--source": str(self._documents), "--tokenizer": str(self._model), "--seq_len": _SEQ_LEN}
                size = {} if {"--total_steps", "--num_blocks"} & {*given} else {"--num_blocks": "192"}
                return where | from_files | size | {"--val_blocks": "4", "--overwrite": ""}
            case ["data_tools", "fetch_assets"]:
                return _FEW_DOCUMENTS if "corpus" in given else {}
            case ["data_tools", "inspect"]:
                few = {"--num_problems": "20"} if "lengths" in given else {}
                short = {"--seq_len": _SEQ_LEN} if {"split", "stream"} & {*given} else {}
                return {"--tokenizer": str(self._model)} | few | short
            case ["data_tools", "compare"]:  # runs of a few steps, which are evaluated once
                curves = {} if "--scaling" in given else {"--metric": "loss"}
                return {"--out": str(self._directory / "comparison")} | curves
            case ["data_tools", "plot_run"]:
                return {"--out": str(self._directory / "report")}  # by default it would be where the tests run
            case ["ds_train", "pptrain" | "pretrain" as phase]:
                batch = {} if {"--micro_batch", "--grad_accum", "--config"} & {*given} else {"--global_batch": "8"}
                return where | self._run_name(phase, given) | batch | self._trainer(phase, given, model)
            case ["ds_train", "preflight"]:
                return where | {"--run_name": "not_begun"} | self._trainer(given[0], given, model)
            case ["ds_train", "experiment"]:
                return {"--dry_run": ""}
            case ["tests", "benchmarks", _]:
                return {"--help": ""}
        return {}

    def _trainer(self, phase: str, given: list[str], model: dict[str, str]) -> dict[str, str]:
        if "--config" in given:
            return {}
        brings_model = phase == "pretrain" and "none" not in given
        length = {"--max_steps": "3"} if phase == "pptrain" else {"--total_steps": "3"}
        return _TRAINING | length | ({} if brings_model else model)

    def _run_name(self, phase: str, given: list[str]) -> dict[str, str]:
        """The first run of a phase has the phase's name, by which others know it; the others must not continue it."""
        scratch = given[given.index("--scratch_dir") + 1] if "--scratch_dir" in given else str(self.scratch)
        if (scratch, phase) not in self._started:
            self._started.add((scratch, phase))
            return {}
        self._num_runs += 1
        return {"--run_name": f"run_{self._num_runs}"}


def _without(words: list[str], flags: tuple[str, ...]) -> list[str]:
    return [word for at, word in enumerate(words) if word not in flags and (at == 0 or words[at - 1] not in flags)]
