"""Export a checkpoint as a Hugging Face directory: safetensors, config, generation config, tokenizer.

    python -m ds_train.export RUN/checkpoints/step_00010000 OUT
    python -m ds_train.export RUN OUT --dtype bf16

CKPT is a step directory, or a run directory (its newest usable checkpoint), of any ZeRO stage and precision. OUT opens
with ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``; evaluate and ``pretrain
--pptrain_checkpoint`` take it too. The exported weights are the fp32 ones that the optimizer updates. ``--dtype bf16``
rounds them to bf16, as a bf16 run does in its forward. Dropout stays as trained (0, except with --keep_dropout).
"""

from pathlib import Path

from data_tools.base.command_line import CommandParser
from data_tools.base.errors import run_command


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="step or run directory")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to create; it may exist if it is empty")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="precision of the exported weights (default fp32)"
    )
    args = parser.parse_args(argv)
    from ds_train.checkpoints.exporting import export  # takes seconds

    export(args.checkpoint, args.out, args.dtype)


if __name__ == "__main__":
    run_command(main)
