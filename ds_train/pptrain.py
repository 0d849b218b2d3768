"""Pre-pretrain a causal LM on an endless graph-search stream whose difficulty rises with its accuracy.

deepspeed ds_train/pptrain.py --scratch_dir DIR --max_steps 100000
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # launched as a file: import the project, not the modules beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ds_train.ranks.signals import install_handlers

if __name__ == "__main__":
    install_handlers()  # before the imports, which take seconds in which a signal would kill
    from ds_train.phases.pptrain import main
    from ds_train.ranks.entry import run_entry

    run_entry(main)
