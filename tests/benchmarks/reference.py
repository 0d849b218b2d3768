"""The reference: the same phases on Accelerate and a DataLoader, the way one would otherwise write them.

    python -m tests.benchmarks.reference pptrain --scratch_dir DIR --tokenizer T --max_steps 8 --start_stage 32
    python -m tests.benchmarks.reference pretrain --scratch_dir DIR --tokenizer T --total_steps 8

Padded batches with an attention mask, bf16 autocast over fp32 weights, full fp32 logits, torch's AdamW as it comes, one
process that tokenizes each batch when it is asked for. Samples, weights of the targets, initial weights and learning
rates are those of ds_train, so the losses must agree; flags that the trainers know too have their names. Each step is a
JSON line on standard output.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from data_tools.base.errors import run_command
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.samples.mixin_table import load_mixin_table
from data_tools.samples.samplers import CurriculumSampler, Cursor, MixinShare, MixtureSampler, SampleKind, Sampler
from data_tools.search.examples import Example
from data_tools.search.generator import ExampleGenerator
from data_tools.search.splits import SplitRows, Splits, find_data_dir, prompt_digest, split_file_name
from ds_train.config.deepspeed_json import default_json
from ds_train.config.schedule import Schedule, schedule_from_block
from ds_train.model.causal_lm import build_model, load_model_config
from tests.benchmarks.measure import Row, peak_memory_bytes

IGNORED = -1  # label of padding; its weight is 0


class SampleIds(Dataset):
    """(source, index) of every sample of the run, in the trainers' order."""

    def __init__(self, sampler: Sampler, stage: int, steps: int) -> None:
        self.ids: list[tuple[SampleKind, int]] = []
        cursor = Cursor(stage=stage)
        for step in range(1, steps + 1):
            plan = sampler.plan(cursor, step)
            self.ids += zip(map(SampleKind, plan.sources.tolist()), plan.indices.tolist(), strict=True)
            cursor = plan.next_cursor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[SampleKind, int]:
        return self.ids[number]


class Rows:
    """Tokens as padded rows: what a collate function returns."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id
        self.rows: list[tuple[list[int], list[float], int]] = []  # tokens, weights of the targets, answer targets

    def add(self, tokens: list[int], weights: list[float], answer: int = 0) -> None:
        self.rows.append((tokens, weights, answer))

    def tensors(self) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels (rows, T) int64; weights (rows, T) float32; is_answer (rows, T) bool."""
        shape = len(self.rows), max(len(weights) for _, weights, _ in self.rows)
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
            "weights": torch.zeros(shape),
            "is_answer": torch.zeros(shape, dtype=torch.bool),
        }
        for row, (tokens, weights, answer) in enumerate(self.rows):
            length = len(weights)
            batch["input_ids"][row, :length] = torch.tensor(tokens[:-1])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.tensor(tokens[1:])
            batch["weights"][row, :length] = torch.tensor(weights)
            batch["is_answer"][row, length - answer : length] = True
        return batch


class Texts:
    """Prompts with their answers, tokenized by transformers' tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eos_id: int) -> None:
        self.tokenizer, self.eos_id = tokenizer, eos_id

    def encode(
        self, prompts: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """(prompt, valid answers with EOS) of each example."""
        texts = [*prompts, *(f" {answer}" for valid in answers for answer in valid)]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        answer_ids = iter(encoded[len(prompts) :])
        for prompt, valid in zip(encoded, answers, strict=False):
            yield prompt, [[*next(answer_ids), self.eos_id] for _ in valid]


class PPTrainCollate:
    """Sample ids of the synthetic stream → padded rows; answers weigh as much as all the rest."""

    def __init__(self, source: ExampleGenerator, stage: int, reserved: set[bytes], texts: Texts, seq_len: int) -> None:
        self.source, self.stage, self.reserved = source, stage, reserved
        self.texts, self.seq_len = texts, seq_len

    def __call__(self, ids: list[tuple[SampleKind, int]]) -> dict[str, torch.Tensor]:
        drawn = [self.draw(index) for _, index in ids]
        examples = [example for _, example in drawn]
        encoded = self.texts.encode([e.input_text for e in examples], [e.output_texts for e in examples])
        rows = Rows(self.texts.eos_id)
        for (_, index), (attempt, _), (prompt, valid) in zip(ids, drawn, encoded, strict=True):
            while len(prompt) + max(map(len, valid)) > self.seq_len:
                attempt, example = self.draw(index, attempt + 1)
                prompt, valid = next(self.texts.encode([example.input_text], [example.output_texts]))
            answer = valid[0]
            num_targets = len(prompt) + len(answer) - 1
            weights = [1.0] * (len(prompt) - 1) + [1 + num_targets / len(answer)] * len(answer)
            rows.add(prompt + answer, weights, len(answer))
        return rows.tensors()

    def draw(self, index: int, attempt: int = 0) -> tuple[int, Example]:
        """The first attempt, from ``attempt`` on, that is not reserved."""
        while True:
            example = self.source.example(index, self.stage, attempt)
            if prompt_digest(example.input_text) not in self.reserved:
                return attempt, example
            attempt += 1


class PretrainCollate:
    """Sample ids of the mixture → one row a C4 block, one padded row an example of a synthetic block."""

    def __init__(self, blocks: PackedBlocks, examples_of: Any, rows: SplitRows, texts: Texts) -> None:
        self.blocks, self.examples_of, self.split, self.texts = blocks, examples_of, rows, texts

    def __call__(self, ids: list[tuple[SampleKind, int]]) -> dict[str, torch.Tensor]:
        rows = Rows(self.texts.eos_id)
        for source, index in ids:
            if source == SampleKind.C4:
                block = self.blocks.block(index).tolist()
                rows.add(block, [1.0] * (len(block) - 1))
                continue
            examples = [self.split[row] for row in self.examples_of(index)]
            encoded = self.texts.encode([e["input_text"] for e in examples], [e["output_texts"][:1] for e in examples])
            for prompt, [answer] in encoded:
                rows.add(prompt + answer, [1.0] * (len(prompt) + len(answer) - 1))
        return rows.tensors()


def data_of(args: argparse.Namespace) -> tuple[Sampler, Any]:
    """The sampler and the collate function of the phase."""
    own = load_tokenizer(args.tokenizer)
    path = Path(args.tokenizer)
    file = path / "tokenizer.json" if path.is_dir() else path
    texts = Texts(PreTrainedTokenizerFast(tokenizer_file=str(file)), own.eos_id)
    splits = Splits(find_data_dir(args.scratch_dir))
    global_batch = args.micro_batch * args.grad_accum
    if args.phase == "pptrain":
        sizes = {"max_input_size": splits.meta.max_input_size, "max_lookahead": splits.meta.max_lookahead}
        source = ExampleGenerator(None, **sizes, seed=args.seed, purpose="train")
        collate = PPTrainCollate(source, args.start_stage, splits.reserved_digests(), texts, args.seq_len)
        return CurriculumSampler(global_batch), collate
    blocks, rows = PackedBlocks(args.scratch_dir / "data" / "c4_packed"), splits.rows("mixin")
    digest = splits.meta.files[split_file_name("mixin")].sha256
    table = load_mixin_table(rows, digest, own, args.seq_len, "packed", args.scratch_dir / "data" / "cache")
    share = MixinShare(args.mixin_percent, args.mixin_percent, "constant", args.steps)
    sampler = MixtureSampler(global_batch, args.seed, share, blocks.num_blocks, table.num_blocks, table.fill)
    return sampler, PretrainCollate(blocks, table.examples_of, rows, texts)


def settings_of(args: argparse.Namespace) -> tuple[dict[str, Any], float, Schedule]:
    """AdamW's hyper-parameters, the clipping norm and the schedule: the shipped JSON's, or the flags'."""
    config = json.loads(default_json(args.phase).read_text())
    params = config["optimizer"]["params"]
    adamw = {name: params[name] for name in ("lr", "betas", "eps", "weight_decay")}
    if args.lr is not None:
        adamw["lr"] = args.lr
    if args.warmup_steps is not None:
        config["scheduler"]["params"]["warmup_num_steps"] = args.warmup_steps
    total_steps = args.steps if args.phase == "pretrain" else None
    return adamw, config["gradient_clipping"], schedule_from_block(config["scheduler"], adamw["lr"], total_steps)


def train(args: argparse.Namespace) -> None:
    """The whole training script."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # Batches of a step are fetched before its first backward, so the loader's end must not end a step early.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.grad_accum, sync_with_dataloader=False),
    )
    sampler, collate = data_of(args)
    adamw, max_norm, schedule = settings_of(args)
    config = load_model_config(args.model_name)
    config.use_cache = False
    model = build_model(config, args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    samples = SampleIds(sampler, args.start_stage, args.steps)
    loader = DataLoader(samples, batch_size=args.micro_batch, shuffle=False, collate_fn=collate, num_workers=0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    batches = iter(loader)
    tokens, positions = torch.zeros((), dtype=torch.int64, device=accelerator.device), 0
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(step)
        group_of_step = [next(batches) for _ in range(args.grad_accum)]
        weight = sum(batch["weights"].sum() for batch in group_of_step)
        losses, is_right = [], []
        for batch in group_of_step:
            with accelerator.accumulate(model):
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                nll = cross_entropy(
                    logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="none"
                )
                loss = (nll * batch["weights"].flatten()).sum() / weight
                accelerator.backward(loss * args.grad_accum)  # accelerate divides by it
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            if args.phase == "pptrain":
                is_right += answers_right(logits.detach(), batch).tolist()
            tokens += batch["attention_mask"].sum()
            positions += batch["attention_mask"].numel()
        row: Row = {"step": step, "loss": float(sum(losses)), "lr": schedule.lr(step), "timestamp": time.time()}
        row |= {"tokens": int(tokens), "positions": positions, "peak_memory_gb": peak_memory_bytes() / 2**30}
        row["accuracy"] = sum(is_right) / len(is_right) if is_right else None
        print(json.dumps(row), flush=True)


def answers_right(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows,) bool: every answer token is the argmax."""
    is_answer = batch["is_answer"]
    right = torch.ones_like(is_answer)
    right[is_answer] = logits[is_answer].argmax(-1) == batch["labels"][is_answer]
    return right.all(1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("pptrain", "pretrain"))
    parser.add_argument("--scratch_dir", type=Path, required=True, help="with splits and, for pretrain, a pack")
    parser.add_argument("--model_name", default="pythia-160m")
    parser.add_argument("--tokenizer", required=True, help="directory with tokenizer.json, or the file")
    parser.add_argument("--max_steps", "--total_steps", dest="steps", type=int, required=True, help="optimizer steps")
    parser.add_argument("--seq_len", type=int, default=2048)
    parser.add_argument("--micro_batch", type=int, default=2)
    parser.add_argument("--grad_accum", type=int, default=2)
    parser.add_argument("--start_stage", type=int, default=0, help="stage of all samples (pptrain)")
    parser.add_argument("--mixin_percent", type=float, default=0.02, help="share of synthetic tokens (pretrain)")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--warmup_steps", type=int)
    parser.add_argument("--mixed_precision", choices=("bf16", "no"), default="bf16")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    train(parse(argv))


if __name__ == "__main__":
    run_command(main)
