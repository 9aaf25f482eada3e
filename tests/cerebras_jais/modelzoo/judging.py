"""The Model Zoo's own judgement of trainer YAML; as a program, of all variants: name -> why it is refused, or null.

The program is a process of its own, because a process has one backend of the Cerebras software, for good, and other
tests make another than its trainer wants here.
"""

import contextlib
import copy
import functools
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[3])

from tests.cerebras_jais.launch.variants import VARIANTS
from tests.cerebras_jais.modelzoo.test_validate import make_data_directories


@contextlib.contextmanager
def its_validation():
    """Its module of validation, which makes the types of each model's trainers once, for time's sake."""
    from cerebras_jais.modelzoo import plugin

    plugin.register()
    from cerebras.modelzoo.trainer import validate

    made = validate.construct_trainer_config
    validate.construct_trainer_config = functools.cache(made)
    yield validate
    validate.construct_trainer_config = made


def validated(validate, document):
    """The Model Zoo's typed trainers of a YAML; raises what its validation raises."""
    kinds = validate.construct_multi_phase_trainer_config(validate.extract_model_names(copy.deepcopy(document)))
    return kinds.validate_python(copy.deepcopy(document), context={"metadata_params": copy.deepcopy(document)})


def refusal_of(validate, document):
    """Why its validation refuses a YAML, or its trainer before the first step; None if neither; on its CPU backend."""
    from cerebras.modelzoo.trainer.utils import configure_trainer_from_config
    from cerebras.pytorch.utils.data import compute_num_steps

    logging.disable(logging.CRITICAL)
    try:
        for config in validated(validate, document):
            config.init.backend["backend_type"] = "CPU"
            trainer = configure_trainer_from_config(config, "train_and_eval")
            trainer.callbacks["optimizer"].on_fit_start(trainer, None, None, trainer.loop)
            lengths = ("num_steps", "max_steps", "num_epochs", "steps_per_epoch", "grad_accum_steps")
            compute_num_steps(range(1000), **{name: getattr(trainer.loop, name) for name in lengths})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)
    return None


def main():
    refusals = {}
    with its_validation() as validate, contextlib.redirect_stdout(sys.stderr):
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                document = variant.document()
                make_data_directories(document)
                refusals[variant.name] = refusal_of(validate, document)
    print(json.dumps(refusals))
    sys.stdout.flush()
    os._exit(0)  # the Cerebras software's threads are not waited for


if __name__ == "__main__":
    main()
