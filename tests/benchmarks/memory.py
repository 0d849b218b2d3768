"""Memory of training: peak and optimizer state per rank at 1 and 2 ranks, and of the loss at a large vocabulary.

    python -m tests.benchmarks.memory

pptrain at Pythia-160m shapes, bf16, ZeRO-1; optimizer state is what each rank writes of it to a checkpoint. The loss is
measured forward and backward on 4,096 tokens × 50,304 ids, with a model so small that logits are all there is: ours
(`PackedLM`), and full fp32 logits under autocast.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig

from data_tools.base.errors import run_command
from data_tools.samples.readers import c4_document
from ds_train.model.causal_lm import build_model
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.benchmarks.measure import (
    build_splits,
    parser,
    peak_memory_bytes,
    print_table,
    run_python,
    scratch_directory,
)
from tests.support.launching import launch, read_log

GIB = 2**30


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__)
    command.add_argument("--model_name", default="pythia-160m", help="preset (default pythia-160m)")
    command.add_argument("--tokens", type=int, default=4096, help="of the loss (default 4096)")
    command.add_argument("--vocab_size", type=int, default=50_304, help="of the loss (default 50304)")
    command.add_argument("--loss", choices=("ours", "full"), help="measure this loss in this process, and print JSON")
    args = command.parse_args(argv)
    if args.loss:
        print(json.dumps(loss_growth_bytes(args.loss, args.tokens, args.vocab_size)))
        return
    with scratch_directory() as scratch:
        build_splits(scratch)
        rows: list[list[Any]] = [[num_ranks, *rank_memory(scratch, args.model_name, num_ranks)] for num_ranks in (1, 2)]
    columns = ["ranks", "peak GiB of rank 0", "optimizer state, GiB a rank"]
    rows.append(["2 / 1", *(two / one for one, two in zip(rows[0][1:], rows[1][1:], strict=True))])
    print_table(f"pptrain, {args.model_name}, global batch 4, micro batch 2, alpha 0.5", columns, rows)
    elements = args.tokens * args.vocab_size
    growths = {loss: loss_growth_in_process(loss, args.tokens, args.vocab_size) for loss in ("ours", "full")}
    loss_rows: list[list[Any]] = [[loss, growth / GIB, growth / elements] for loss, growth in growths.items()]
    loss_rows.append(["ours / full", growths["ours"] / growths["full"], ""])
    columns = ["loss", "peak growth, GiB", "bytes a logit"]
    print_table(f"Loss over {args.tokens:,} tokens × {args.vocab_size:,} ids", columns, loss_rows)


def rank_memory(scratch: Path, model_name: str, num_ranks: int) -> tuple[float, float]:
    """Peak memory of rank 0 and mean optimizer state of a rank, both in GiB."""
    run = scratch / "pptrain"
    shutil.rmtree(run, ignore_errors=True)
    flags = f"""--scratch_dir {scratch} --tokenizer {scratch}/tokenizer --model_name {model_name} --start_stage 32
        --max_steps 2 --global_batch 4 --micro_batch 2 --log_every 1 --eval_subset_size 1""".split()
    done = launch("ds_train/pptrain.py", *flags, num_ranks=num_ranks, through_launcher=True)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:])
    sizes = [path.stat().st_size for path in run.glob("checkpoints/step_*/**/*optim_states.pt")]
    return max(row["peak_memory_gb"] for row in read_log(run)), sum(sizes) / num_ranks / GIB


def loss_growth_in_process(loss: str, tokens: int, vocab_size: int) -> int:
    arguments = ["-m", "tests.benchmarks.memory", "--loss", loss, "--tokens", tokens, "--vocab_size", vocab_size]
    return int(run_python(arguments).splitlines()[-1])


def loss_growth_bytes(loss: str, num_tokens: int, vocab_size: int) -> int:
    """By how much forward and backward raise this process's peak resident set."""
    config = GPTNeoXConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32,
        max_position_embeddings=num_tokens, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (num_tokens + 1,), generator=generator)
    before = peak_memory_bytes()
    if loss == "ours":
        batch = pack([[c4_document(tokens.numpy())]])
        total, *_ = PackedLM(model.bfloat16())(batch)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens[None, :-1]).logits
        total = cross_entropy(logits.float().flatten(0, 1), tokens[1:], reduction="sum")
    total.backward()
    return peak_memory_bytes() - before


if __name__ == "__main__":
    run_command(main)
