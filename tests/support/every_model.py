"""What becomes of each class of transformers' causal LMs here, tried on a small random model of it.

    python tests/support/every_model.py

prints the table of ds_train/README.md, which a test compares with what it finds.
"""

import logging
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_tools.base.errors import UserError, first_line
from data_tools.samples.readers import c4_document
from ds_train.model.attention import describe_attention
from ds_train.model.causal_lm import build_model, causal_lm_config, prepare_config
from ds_train.model.flops import training_flops
from ds_train.model.isolation import settle_rows
from ds_train.model.recomputation import check_recomputation
from ds_train.model.small_config import VOCAB_SIZE, small_config
from ds_train.ranks.collectives import init_distributed
from ds_train.ranks.world import World
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from ds_train.step.probe import check_isolation

SEQ_LEN = 48
PACKED, PADDED, REFUSED = "end to end in one row", "one a row, padded", "refused"
FAILED = "failed"  # none of the three: a fault of ours
# What a class's own default configuration lacks, or which kinds of layers its published models have.
COMPLETED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
}


def small_configuration(config_class: Callable[[], PretrainedConfig], model_type: str) -> PretrainedConfig:
    """A class's default configuration, completed and made small."""
    config = config_class()
    for name, value in COMPLETED.get(model_type, {}).items():
        setattr(config, name, value)
    return small_config(config)


def outcome(config: PretrainedConfig) -> tuple[str, str]:
    """How a model's documents are read and its attention, or that it is refused and why: by what a launch does with it.

    Raises:
        AssertionError: it is trained, and the loss depends on the micro batch.
    """
    try:
        config = causal_lm_config(config, config.model_type)
        prepare_config(config, seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE, keep_dropout=False, scratch=True)
        one_document_a_row = settle_rows(config, "auto", keep_dropout=False)
        model = PackedLM(build_model(config, seed=0), one_document_a_row=one_document_a_row)
        check_isolation(model, model, torch.device("cpu"))
        training_flops(config)
        describe_attention(config, torch.device("cpu"), torch.float32)
    except UserError as error:
        return REFUSED, str(error)
    _assert_losses_add_up(model)
    return PADDED if model.one_document_a_row else PACKED, config._attn_implementation


def _assert_losses_add_up(model: PackedLM) -> None:
    """Samples of uneven lengths lose together what they lose alone, and so do their gradients."""
    rng = np.random.default_rng(0)
    samples = [[c4_document(rng.integers(1, VOCAB_SIZE - 1, length))] for length in (SEQ_LEN + 1, 9, 30, 17)]
    results = []
    for micro_batches in ([samples], [[sample] for sample in samples]):
        model.zero_grad()
        losses = [model(pack(micro_batch))[0] for micro_batch in micro_batches]
        torch.stack(losses).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((sum(loss.item() for loss in losses), torch.cat(gradients)))
    (together, joint), (alone, separate) = results
    assert np.isfinite(alone) and abs(together - alone) <= 1e-5 * abs(alone), (together, alone)
    assert (joint - separate).norm() <= 1e-3 * separate.norm(), (joint - separate).norm() / separate.norm()


def outcomes() -> dict[str, tuple[str, str]]:
    """Of every model type of transformers' mapping."""
    found = {}
    for config_class in MODEL_FOR_CAUSAL_LM_MAPPING:
        model_type = config_class.model_type
        try:
            found[model_type] = outcome(small_configuration(config_class, model_type))
        except StrictDataclassError as error:  # transformers refuses its own default
            found[model_type] = (REFUSED, first_line(error))
        except Exception as error:
            found[model_type] = (FAILED, first_line(error))
    return found


def not_checkpointable(model_types: Iterable[str]) -> list[str]:
    """Those of these model types whose activations cannot be recomputed."""
    refused = []
    for model_type in model_types:
        config = small_configuration(CONFIG_MAPPING[model_type], model_type)
        try:
            check_recomputation(causal_lm_config(config, model_type))
        except UserError:
            refused.append(model_type)
    return refused


def table(found: dict[str, tuple[str, str]]) -> str:
    """The table of the README: model types by what becomes of them."""
    groups: dict[str, list[str]] = defaultdict(list)
    for model_type, (what, _) in sorted(found.items()):
        groups[what].append(model_type)
    lines = ["| documents | | model types |", "|---|---|---|"]
    lines += [f"| {what} | {len(names)} | {', '.join(names)} |" for what, names in sorted(groups.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    init_distributed(World(0, 0, 1))
    all_found = outcomes()
    print(table(all_found))
    for name, (what, why) in sorted(all_found.items()):
        print(textwrap.shorten(f"{name}: {what}: {why}", 200), file=sys.stderr)
