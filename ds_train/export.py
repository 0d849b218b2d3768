"""Export a checkpoint as a Hugging Face directory: safetensors, config, generation config, tokenizer.

    python -m ds_train.export RUN/checkpoints/step_00010000 OUT
    python -m ds_train.export RUN OUT --dtype bf16

CKPT is a step directory, or a run directory (its newest usable checkpoint), of any ZeRO stage and precision. OUT opens
with ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``, and serves evaluate and
``pretrain --pptrain_checkpoint``. The weights are the fp32 ones that the optimizer updates; a bf16 run trains with them
rounded to bf16, which is what ``--dtype bf16`` writes. Dropout stays as it was trained (0, but for --keep_dropout).
"""

from pathlib import Path

from data_tools.base.command_line import CommandParser
from data_tools.base.errors import run_command


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="step or run directory")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to make; it may exist if it is empty")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="of the exported weights (default fp32)"
    )
    args = parser.parse_args(argv)
    from ds_train.checkpoints.exporting import export  # takes seconds

    export(args.checkpoint, args.out, args.dtype)


if __name__ == "__main__":
    run_command(main)
