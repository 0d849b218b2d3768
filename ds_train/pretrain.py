"""Pretrain on packed C4 with a share of synthetic graph-search blocks mixed in.

deepspeed ds_train/pretrain.py --scratch_dir DIR --pptrain_checkpoint latest --total_steps 10000
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # launched as a file: import the project, not the modules beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import GROUPS
from ds_train.ranks.entry import run_entry
from ds_train.ranks.signals import install_handlers


def main(argv: list[str] | None = None) -> int:
    """Train. Help and mistakes on the command line are reported before the imports, which take seconds."""
    parse_flags(*GROUPS["pretrain"], description=__doc__ or "", argv=argv)
    from ds_train.phases import pretrain

    return pretrain.main(argv)


if __name__ == "__main__":
    install_handlers()  # before the imports, during which a signal would kill
    run_entry(main)
