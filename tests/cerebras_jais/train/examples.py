"""A tiny trainer YAML and tiny data that the trainer's tests share."""

import copy

import h5py
import numpy as np
import yaml

from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.launch.start import plan_launch
from cerebras_jais.train.loop import FitOptions, fit
from tests.cerebras_jais.model.examples import jais_section, llama_section

LENGTH, VOCABULARY = 32, 64
SIZES = {
    "hidden_size": 32,
    "num_heads": 4,
    "filter_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
}
JAIS = jais_section(**SIZES)
LLAMA = llama_section(kv_groups=2, **SIZES)


def train(config, *, model_dir=None, max_steps=None, checkpoint=None, **options):
    """Run a config of one trainer; what is not of its plan is of `FitOptions`."""
    launch = plan_launch([config], model_dir=model_dir, max_steps=max_steps, checkpoint=checkpoint)
    return fit(launch.phases[0], launch.start, FitOptions(**{"progress": False, **options}))


def write_data(directory, samples=64, seed=0, length=LENGTH, vocabulary=VOCABULARY, packed=False):
    """Predictable rows (each label follows from its input) with masks of different lengths."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    start = rng.integers(0, vocabulary, (samples, 1))
    ids = (start + 3 * np.arange(length + 1)) % vocabulary
    mask = (np.arange(length)[None, :] < rng.integers(length // 2, length + 1, (samples, 1))).astype(int)
    rows = [ids[:, :-1], mask, ids[:, 1:]]
    if packed:
        half = length // 2
        position = np.concatenate([np.arange(half), np.arange(length - half)])
        span = np.concatenate([np.arange(half)[::-1], np.arange(length - half)[::-1]])
        rows += [np.tile(span, (samples, 1)), np.tile(position, (samples, 1))]
    with h5py.File(directory / "a.h5", "w") as file:
        file.create_dataset("data", data=np.stack(rows, 1).astype(np.int32))
        file.attrs["n_examples"] = samples
    return directory


def trainer_section(folder, model=JAIS, **init):
    """The mapping under `trainer:`; data is looked for in `folder`/train and `folder`/held_out."""
    section = {
        "init": {
            "backend": {"backend_type": "CPU"},
            "model_dir": str(folder / "run"),
            "seed": 1,
            "model": copy.deepcopy(model),
            "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "correct_bias": True}},
            "schedulers": [
                {
                    "SequentialLR": {
                        "schedulers": [
                            {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 0.02, "total_iters": 3}},
                            {
                                "CosineDecayLR": {
                                    "initial_learning_rate": 0.02,
                                    "end_learning_rate": 0.002,
                                    "total_iters": 10,
                                }
                            },
                        ]
                    }
                }
            ],
            "precision": {"enabled": False, "max_gradient_norm": 1.0},
            "loop": {"max_steps": 6, "eval_frequency": None},
            "checkpoint": {"steps": 3},
            "logging": {"log_steps": 1},
            "loggers": [{"TensorBoardLogger": None}],
        },
        "fit": {
            "train_dataloader": {
                "data_processor": "GptHDF5MapDataProcessor",
                "data_dir": str(folder / "train"),
                "batch_size": 4,
                "shuffle": True,
                "shuffle_seed": 3,
            },
            "val_dataloader": {
                "data_processor": "GptHDF5MapDataProcessor",
                "data_dir": str(folder / "held_out"),
                "batch_size": 4,
            },
        },
    }
    section["init"].update(init)
    return section


def config_of(folder, model=JAIS, **init):
    """The config of `trainer_section`."""
    return parse_trainer(trainer_section(folder, model, **init))


def write_yaml(path, section):
    """Write one trainer as a YAML file."""
    path.write_text(yaml.safe_dump({"trainer": section}, sort_keys=False))
    return path


def use_cpu(cstorch):
    """Make the CPU Cerebras PyTorch's backend; a process has one."""
    from cerebras.pytorch.backend import current_backend_impl

    if current_backend_impl(raise_exception=False) is None:
        cstorch.backend("CPU")
