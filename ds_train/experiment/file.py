"""The file of an experiment: sections of flags, conditions and seeds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import is_path
from ds_train.config.flags import names_with_role
from ds_train.config.run_file import flags_of, read_mapping
from ds_train.config.trainer_flags import GROUPS, RunFlags
from ds_train.experiment.conditions import Condition, chosen, read_conditions, read_vary, variants

_FLAG_SECTIONS = ("splits", "corpus", "tokenizer", "pack", "training", "pptrain", "pretrain", "evaluate")
_SECTIONS = (*_FLAG_SECTIONS, "vary", "conditions", "seeds")
# Flags that no section may hold.
SET_HERE = {
    *names_with_role(GROUPS["pretrain"], "launch"),
    *("scratch_dir", "run_name", "pptrain_checkpoint", "pptrain_run", "branch_from", "data_dir", "pack_dir", "name"),
    *("tokenizer", "num_ranks", "num_nodes", "num_blocks", "total_blocks", "effective_batch", "corpus", "extra", "out"),
    *("split", "output", "half"),
}


class ExperimentFile:
    """The content of a CONFIG.

    Attributes:
        conditions: by name, as defined there.
        vary: flags of pretrain, and the values that they take in turn in each condition.
        seeds: of the runs.
        tokenizer: a hub id or path.
        trains_tokenizer: whether the experiment makes it.
        documents: paths of the documents; none for C4 from the hub.

    Raises:
        UserError: it has a fault that is seen in the file alone.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        content = read_mapping(path, str(path))
        for name in content:
            if name not in _SECTIONS:
                hint = did_you_mean(name, _SECTIONS, f"; expected one of {', '.join(_SECTIONS)}.")
                raise UserError(f"{path}: {name!r} is no section{hint}")
        self._sections = {name: self._section(name, content[name]) for name in _FLAG_SECTIONS if name in content}
        with self.naming():
            self.conditions = read_conditions(content.get("conditions"))
            self.vary = read_vary(content.get("vary"))
        self._refuse_set_here("vary", self.vary, ("seed", "seq_len"))
        if twice := next((flag for flag in self.vary if flag in self._sections.get("pretrain", {})), None):
            raise UserError(f"{path}: pretrain: {twice} is given, and vary has it too; keep one of them.")
        for condition in self.conditions.values():
            for phase, flags in condition.flags.items():
                self._refuse_set_here(f"condition {condition.name}: {phase}", flags, ("seed", "seq_len"))
        self.seeds = self._read_seeds(content.get("seeds"))
        self.documents = self._documents(scratch)
        self.trains_tokenizer = not isinstance(self._sections.get("tokenizer"), str)
        self.tokenizer = self._tokenizer(scratch)

    def chosen(self, names: list[str] | None = None) -> list[Condition]:
        """The conditions of these names, or all, each with all values of what is varied."""
        with self.naming():
            return [one for condition in chosen(self.conditions, names) for one in variants(condition, self.vary)]

    def has(self, section: str) -> bool:
        return section in self._sections

    def section(self, name: str) -> dict[str, Any]:
        """The flags of a section; none if it is missing."""
        return dict(self._sections.get(name, {}))

    def arguments(self, values: dict[str, Any], where: str, known: Mapping[str, bool] | None = None) -> list[str]:
        """Flags as arguments of a command; messages name the section."""
        return flags_of(values, f"{self.path}: {where}", known)

    @contextmanager
    def naming(self, section: str = "") -> Iterator[None]:
        """Name the file and the section in a message."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.path}: {f'{section}: ' if section else ''}{error}") from None

    def _section(self, name: str, value: Any) -> Any:
        """Check a section: flags (perhaps none), or for the tokenizer also a name."""
        if name == "tokenizer" and isinstance(value, str):
            return value
        if not isinstance(value or {}, dict):
            raise UserError(f"{self.path}: {name} is {value!r}, expected flags, one per line.")
        self._refuse_set_here(name, value or {}, ("seed",) if name in ("pptrain", "pretrain") else ())
        return value or {}

    def _refuse_set_here(self, where: str, flags: Mapping[str, Any], shared: Sequence[str]) -> None:
        if twice := sorted(SET_HERE & set(flags)):
            raise UserError(f"{self.path}: {where}: {', '.join(twice)} is set by the experiment itself; leave it out.")
        if own := next((name for name in shared if name in flags), None):
            raise UserError(f"{self.path}: {where}: {own} is shared by all runs; give it under training.")

    def _read_seeds(self, given: Any) -> list[int]:
        own = self._sections.get("training", {}).pop("seed", None)
        if given is None:
            if own is not None and not _is_whole(own):
                raise UserError(f"{self.path}: training: seed is {own!r}, expected a whole number.")
            return [RunFlags(scratch_dir="").seed if own is None else own]
        if not isinstance(given, list) or not given or not all(map(_is_whole, given)) or len(set(given)) < len(given):
            raise UserError(f"{self.path}: seeds is {given!r}, expected different whole numbers, such as [1, 2, 3].")
        if own is not None:
            raise UserError(f"{self.path}: training: seed is given beside seeds; keep one of them.")
        return given

    def _documents(self, scratch: Path) -> list[str]:
        source = self.section("pack").get("source") or []
        if self.has("corpus"):
            if source:
                raise UserError(f"{self.path}: corpus and source in pack both choose the documents; keep one.")
            return [str(scratch / "corpus")]
        return [source] if isinstance(source, str) else list(source)

    def _tokenizer(self, scratch: Path) -> str:
        if not self.has("tokenizer"):
            raise UserError(f"{self.path}: tokenizer is missing; give a hub id, a path, or flags to train one with.")
        if not self.trains_tokenizer:
            spec = str(self._sections["tokenizer"])
            if is_path(spec) and not Path(spec).expanduser().exists():
                raise UserError(f"{self.path}: tokenizer is {spec}: no such file or directory; give one, or a hub id.")
            return spec
        if not self.documents:
            raise UserError(
                f"{self.path}: tokenizer needs documents to be trained on; add corpus, or source under pack."
            )
        return str(scratch / "tokenizer")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
