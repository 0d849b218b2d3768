"""Starts and ends an entry point on a rank: logging, exit codes, and one message for an expected error.

Does not import torch, which takes seconds: mistakes on the command line are reported before that.
"""

import codecs
import locale
import logging
import sys
import time
import warnings
from collections.abc import Callable

from data_tools.base.errors import UserError, report, user_message
from ds_train.ranks.signals import end_on_signal, ignore_signals
from ds_train.ranks.world import World, named_accelerator, world_from_env


def set_up_logging(world: World) -> None:
    """Log everything on rank 0 and only errors on the others; hide torch's warnings about DeepSpeed's own calls."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", force=True)
    for package in ("ds_train", "data_tools", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO if world.is_main else logging.ERROR)


_SECONDS_FOR_MAIN_TO_SPEAK = 10


def _refuse_ascii() -> None:
    """Refuse a Python that reads text files as ASCII: torch's own files have other characters."""
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name == "ascii":
        raise UserError(
            f"Python reads text files as ASCII here ({encoding}), and torch's own are UTF-8; leave out PYTHONUTF8=0 "
            "or set LC_ALL=C.UTF-8."
        )


_more_on_out_of_memory: list[Callable[[], str]] = []


def on_out_of_memory(more: Callable[[], str]) -> None:
    """Have this called when there is no memory left on the device; the message ends with the text that it returns."""
    _more_on_out_of_memory[:] = [more]


def _is_main() -> bool:
    try:
        return world_from_env().is_main
    except UserError:
        return True


def _leave_process_group() -> None:
    """Leave the process group, if there is one. All ranks have finished, but a launcher signals the slower ones."""
    dist = sys.modules.get("torch.distributed")
    if dist and dist.is_initialized():
        ignore_signals()
        dist.destroy_process_group()


def run_entry(main: Callable[[], int]) -> None:
    """Run an entry point on this rank and exit with its code. An expected error is one message and exit code 1.

    Most errors hit every rank, so only rank 0 reports; the others report only if they outlive it. They wait, because
    launchers kill every rank when the first one fails.
    """
    try:
        _refuse_ascii()
        named_accelerator()  # refuses a bad name before DeepSpeed reads it
        code = main()
        _leave_process_group()
    except Exception as error:
        message = user_message(error)
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            message = (
                f"{str(error).splitlines()[0]} Lower --micro_batch or raise --zero_stage; ds_train.preflight helps."
                f"{''.join(more() for more in _more_on_out_of_memory) or ' --profile_steps shows what took it.'}"
            )
        if message is None:
            raise
        code = 1
        if not _is_main():
            end_on_signal()
            time.sleep(_SECONDS_FOR_MAIN_TO_SPEAK)
        report(message)
    sys.exit(code)
