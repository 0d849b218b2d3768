"""Every key that DeepSpeed reads either works or is refused with a reason, before anything is built."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import deepspeed
import pytest
from deepspeed.runtime import config as deepspeed_config
from deepspeed.runtime.config import DeepSpeedConfig
from pydantic import BaseModel

from data_tools.base.errors import UserError
from ds_train.config.json_checks import _block_models
from ds_train.config.json_keys import ACCEPTED, REFUSED, read_at
from tests.support.devices import DEVICES
from tests.support.engine_configs import GONE, changed, resolve
from tests.support.launching import launch, launch_alone
from tests.support.markdown import tables
from tests.support.paths import REPOSITORY
from tests.system.launched_json_keys import HALF

REFUSED_KEYS = [(block, key) for block, keys in REFUSED.items() for key in keys]


class Recorder(dict):
    """A block of a JSON that notes the dotted names of the keys that are looked up in it."""

    def __init__(self, content: dict[str, Any], name: str, seen: set[str]) -> None:
        super().__init__(content)
        self.name, self.seen = name, seen

    def _note(self, key: str) -> None:
        self.seen.add(f"{self.name}.{key}" if self.name else key)

    def __contains__(self, key: object) -> bool:
        self._note(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def keys(self) -> Any:  # DeepSpeed asks ``key in block.keys()``
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def __copy__(self) -> "Recorder":
        return self


def read_by_deepspeed() -> set[str]:
    """Dotted names of all keys that DeepSpeed looks up, by a trial, and of those its models of blocks have."""
    seen: set[str] = set()
    blocks = ("optimizer", "data_types", "flops_profiler", "checkpoint", "activation_checkpointing")
    content = {name: Recorder({"type": "AdamW"} if name == "optimizer" else {}, name, seen) for name in blocks}
    DeepSpeedConfig(Recorder({"train_batch_size": 1, **content}, "", seen))
    seen |= {f"zero_optimization.{key}" for key in deepspeed_config._REMOVED_ZERO_CONFIG_KEYS}
    seen |= set(re.findall(r'\bconfig(?:\[|\.get\()"(\w+)"', inspect.getsource(deepspeed.initialize)))
    for name, model in _block_models().items():
        seen |= set(fields_of(model, name))
    return seen


def fields_of(model: type[BaseModel], name: str) -> Iterator[str]:
    for field, info in model.model_fields.items():
        names = {field, info.alias or field}
        yield from (f"{name}.{each}" for each in names)
        if not names & set(REFUSED.get(name, {})):
            inner = (each for each in (info.annotation, *get_args(info.annotation)) if hasattr(each, "model_fields"))
            yield from (below for each in inner for below in fields_of(each, f"{name}.{field}"))


def judged() -> dict[str, str]:
    """Each key in a table, by its dotted name, and the table."""
    both = [("accepted", ACCEPTED), ("refused", REFUSED)]
    return {dotted(block, key): table for table, entries in both for block, keys in entries.items() for key in keys}


def dotted(block: str, key: str) -> str:
    return f"{block}.{key}" if block else key


def test_every_key_that_deepspeed_reads_is_judged() -> None:
    """A new version of DeepSpeed may bring keys: judge them in json_keys.py."""
    per_type = {"optimizer.params"}
    refused_whole = {key for key in read_by_deepspeed() if key.split(".")[0] in REFUSED[""]}
    assert sorted(read_by_deepspeed() - refused_whole - per_type - set(judged())) == []
    assert {key.split(".")[0] for key in refused_whole} <= set(judged())


def test_no_key_is_judged_that_deepspeed_does_not_read() -> None:
    own = {"activation_checkpointing.every"}
    assert set(judged()) - read_by_deepspeed() == own
    assert sum(map(len, [*ACCEPTED.values(), *REFUSED.values()])) == len(judged()), "a key is in both tables"


def test_refused_keys_say_why_unless_they_ask_for_what_happens_anyway() -> None:
    for block, key in REFUSED_KEYS:
        entry, name = REFUSED[block][key], dotted(block, key)
        with pytest.raises(UserError, match=re.escape(f"{name} is refused: {entry.reason}; {entry.instead}.")) as error:
            resolve(changed((name, {"enabled": True})))
        assert str(error.value).startswith(name), "one problem"
        if entry.anyway is not None:
            resolve(changed((name, entry.anyway)))
            with pytest.raises(UserError, match="is refused"):
                resolve(changed((name, int(entry.anyway) if isinstance(entry.anyway, bool) else "x")))


@pytest.mark.parametrize(
    ("changes", "without_effect"),
    [
        ({"overlap_comm": True}, {"overlap_comm"}),  # of ZeRO 1 in bf16
        ({"allgather_bucket_size": 1000, "offload_optimizer": {"device": "cpu"}, "overlap_comm": True}, set()),
        ({"stage": 2, "reduce_bucket_size": 1000, "stage3_max_live_parameters": 5}, {"stage3_max_live_parameters"}),
        ({"stage": 3, "sub_group_size": 1000, "allgather_bucket_size": 1000}, {"allgather_bucket_size"}),
    ],
)
def test_a_key_that_another_stage_reads_is_reported(changes: dict[str, Any], without_effect: set[str]) -> None:
    of_zero = ((f"zero_optimization.{key}", value) for key, value in changes.items())
    resolved = resolve(changed(("optimizer.params.torch_adam", True), *of_zero))
    reported = {line.split()[0] for line in resolved.overrides if "has no effect" in line}
    assert reported == {f"zero_optimization.{key}" for key in without_effect}


def test_every_accepted_key_is_documented() -> None:
    """With its whole name, or as a word in a row about another key of its block or about the block."""
    table = next(table for table in tables(REPOSITORY / "ds_configs" / "README.md") if table[0][0] == "key")
    rows = [set(re.findall(r"[\w.]+", " ".join(row))) for row in table[1:]]

    def is_documented(block: str, key: str) -> bool:
        of_block = [row for row in rows if any(name == block or name.startswith(f"{block}.") for name in row)]
        return any(dotted(block, key) in row for row in rows) or (block != "" and any(key in row for row in of_block))

    keys = [(block, key) for block, keys in ACCEPTED.items() for key in keys]
    blocks = {*ACCEPTED, "scheduler"}
    assert [each for each in keys if dotted(*each) not in blocks and not is_documented(*each)] == []


# Values other than DeepSpeed's own, by ZeRO stage, with "b" for ZeRO 1 in bf16. A line is one run.
_CPU = {"device": "cpu", "pin_memory": False}
ZERO_KEYS: list[tuple[str, dict[str, Any]]] = [
    ("b", {"allgather_bucket_size": 3000}),
    ("b", {"offload_optimizer": _CPU, "overlap_comm": True, "parameter_alignment": True}),
    ("1", {"contiguous_gradients": False, "reduce_scatter": False, "reduce_bucket_size": 3000}),
    ("1", {"overlap_comm": True, "allgather_bucket_size": 3000, "use_multi_rank_bucket_allreduce": False}),
    ("1", {"round_robin_gradients": True, "parameter_alignment": True, "offload_optimizer": _CPU}),
    ("2", {"contiguous_gradients": False, "reduce_scatter": False, "parameter_alignment": True}),
    ("2", {"overlap_comm": True, "reduce_bucket_size": 3000, "allgather_bucket_size": 3000}),
    ("2", {"round_robin_gradients": True, "offload_optimizer": _CPU, "use_multi_rank_bucket_allreduce": False}),
    ("3", {"contiguous_gradients": False, "overlap_comm": False, "reduce_bucket_size": 3000, "sub_group_size": 3000}),
    ("3", {"reduce_scatter": False, "offload_optimizer": _CPU, "offload_param": _CPU, "enable_sanity_checks": True}),
    ("3", {"stage3_prefetch_bucket_size": 0, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
           "memory_efficient_linear": False}),
    ("3", {"stage3_param_persistence_threshold": 0, "stage3_use_all_reduce_for_fetch_params": True,
           "leaf_module": {"classes": ["GPTNeoXLayer"]}}),
    ("3", {"stage3_model_persistence_threshold": 0, "stage3_allgather_sequential": True,
           "leaf_module": {"names": ["causal_lm.gpt_neox.layers.0"], "name_suffixes": ["mlp"]},
           "log_trace_cache_warnings": True}),
]  # fmt: skip
# What is printed, or written where a file is named; the last ones, as DeepSpeed keeps them for the process.
REPORTS: list[tuple[dict[str, Any], str]] = [
    ({"wall_clock_breakdown": True}, "bwd_microstep"),
    ({"memory_breakdown": True}, "CPU Virtual Memory"),
    ({"flops_profiler": {"enabled": True, "profile_step": 2, "module_depth": 1, "top_modules": 2, "detailed": True,
                         "recompute_fwd_factor": 1.0}}, "Aggregated Profile per GPU"),
    ({"flops_profiler": {"enabled": True, "detailed": False, "output_file": "flops.txt"}}, "flops.txt"),
    ({"comms_logger": {"enabled": True, "prof_all": False, "prof_ops": ["all_reduce"], "debug": True}},
     "all_reduce | [Caller Func: "),
    ({"comms_logger": {"enabled": True, "verbose": True}, "log_level": "info"}, "comm op: all_reduce | time"),
]  # fmt: skip


# At the top of the JSON, at ZeRO 1 in fp32; and in bf16.
OTHERS: list[tuple[str, dict[str, Any]]] = [("b", {"bf16": {"enabled": True, "immediate_grad_update": True}})]


def case(stage: str, zero: dict[str, Any], top: dict[str, Any], *, resumes: bool = False) -> dict[str, Any]:
    layout = {"zero_optimization.stage": 1, "bf16": {"enabled": True}} if stage == "b" else {}
    layout = layout or {"zero_optimization.stage": int(stage)}
    return {
        "keys": layout | {f"zero_optimization.{key}": value for key, value in zero.items()} | top,
        "resumes": resumes,
    }


Found = dict[str, Any]  # see launched_json_keys.py
PLAIN = {stage: case(stage, {}, {}) for stage in "b123"}
ZERO_3_IN_BF16 = case("3", {}, {"bf16": {"enabled": True}})
CASES = [
    *((stage, case(stage, zero, {}, resumes=True)) for stage, zero in ZERO_KEYS),
    *((stage, case(stage, {}, top, resumes=True)) for stage, top in OTHERS),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Found]:
    """All cases in one launch. Returns what was found for one."""
    path = tmp_path_factory.mktemp("keys") / "cases.json"
    cases = [*PLAIN.values(), ZERO_3_IN_BF16, *(each for _, each in CASES), *(case("1", {}, top) for top, _ in REPORTS)]
    path.write_text(json.dumps(cases))
    done = launch("tests/system/launched_json_keys.py", str(path), num_ranks=2)
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads(Path(f"{path}.out").read_text())
    return lambda wanted: found[cases.index(wanted)]


def test_the_cases_have_every_key() -> None:
    used = {key for _, zero in ZERO_KEYS for key in zero}
    assert ACCEPTED["zero_optimization"] - used == {"stage"}
    for stage in "b123":
        of_stage = {key for at, zero in ZERO_KEYS for key in zero if at == stage}
        read = {key for key in ACCEPTED["zero_optimization"] - {"stage"} if stage in read_at(key)}
        assert read <= of_stage, stage


@pytest.mark.launch
def test_accepted_keys_train_the_same_model_and_resume(measured: Callable[[dict[str, Any]], Found]) -> None:
    for stage, keys in CASES:
        found, tolerance = measured(keys), 1e-3 if stage == "b" else 1e-6
        assert found["losses"] == pytest.approx(measured(PLAIN[stage])["losses"], rel=tolerance), keys
        assert found["resumed"] == found["losses"][HALF:], keys
        assert found["continued"] == pytest.approx(found["losses"][HALF:], rel=tolerance), keys


@pytest.mark.launch
def test_zero_3_rounds_as_zero_1(measured: Callable[[dict[str, Any]], Found]) -> None:
    """DeepSpeed's own linear layers round before they add a bias: these losses would differ by 1e-3."""
    assert measured(ZERO_3_IN_BF16)["losses"] == pytest.approx(measured(PLAIN["b"])["losses"], rel=1e-6)


@pytest.mark.launch
def test_reports_are_printed_and_change_nothing(measured: Callable[[dict[str, Any]], Found]) -> None:
    for keys, expected in REPORTS:
        found = measured(case("1", {}, keys))
        assert expected in found["printed"] or expected in found["files"], (keys, found["printed"][-2000:])
        assert found["losses"] == measured(PLAIN["1"])["losses"], keys
    assert not any(measured(plain)["printed"] for plain in PLAIN.values())


_FP16 = {
    "fixed": {"enabled": True, "loss_scale": 1024},
    "adapting": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 2, "hysteresis": 1,
                 "consecutive_hysteresis": True, "min_loss_scale": 4},
}  # fmt: skip


def test_keys_of_fp16_reach_deepspeed() -> None:
    """DeepSpeed has no fp16 on CPUs."""
    read = {
        name: DeepSpeedConfig(resolve(changed(("bf16", GONE), ("fp16", block))).deepspeed).float16_config
        for name, block in _FP16.items()
    }
    assert read["fixed"].loss_scale == 1024 and read["adapting"].loss_scale == 0
    assert list(read["adapting"].dynamic_loss_scale_args().values()) == [256, 2, 1, True, 4]
    assert set().union(*_FP16.values()) == ACCEPTED["fp16"]


@pytest.mark.launch
@pytest.mark.parametrize("device", DEVICES[1:])
def test_fp16_trains_nearly_as_fp32(device: str, tmp_path: Path) -> None:
    cases = [PLAIN["1"], *(case("1", {}, {"fp16": block}, resumes=True) for block in _FP16.values())]
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    done = launch_alone(device, "tests/system/launched_json_keys.py", str(path))
    assert done.returncode == 0, done.stdout[-3000:]
    plain, *halves = json.loads(Path(f"{path}.out").read_text())
    for half in halves:
        assert half["losses"] == pytest.approx(plain["losses"], rel=2e-2)
        assert half["resumed"] == pytest.approx(half["losses"][HALF:], rel=1e-3)
