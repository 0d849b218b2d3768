"""The generator of training examples: is it that of the splits, and that of the checkpoint?"""

import json
import logging
from collections.abc import Collection

from data_tools.base.errors import UserError
from data_tools.search.examples import SEARCH
from data_tools.search.generator import ExampleGenerator, GeneratorIdentity
from data_tools.search.splits import Splits
from ds_train.checkpoints.resume import GENERATOR_EXAMPLES

logger = logging.getLogger(__name__)


def generator_fingerprints(source: ExampleGenerator, identity: GeneratorIdentity) -> dict[str, str]:
    """What a resumed checkpoint must match."""
    choice = source.choice
    asked = "" if choice.task == SEARCH else f" {choice.task}"
    asked += f" {json.dumps(choice.options, sort_keys=True)}" if choice.options else ""
    examples = {GENERATOR_EXAMPLES: identity.examples} if identity.examples else {}
    return {"generator": f"{source.name} {identity.version}{asked}", **examples}


def check_generator(
    splits: Splits, source: ExampleGenerator, identity: GeneratorIdentity, accepted: Collection[str]
) -> None:
    """Refuse a generator that has changed since the splits were built, unless that is accepted."""
    if (problem := splits.generator_change(source, identity)) is None:
        return
    if GENERATOR_EXAMPLES not in accepted:
        raise UserError(f"{problem}. Restore it, build the splits again, or give --accept_change {GENERATOR_EXAMPLES}.")
    logger.warning("--accept_change %s: %s", GENERATOR_EXAMPLES, problem)
