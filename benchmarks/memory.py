"""The memory that a dry run states, beside what is measured: layers of a large model's shape, trained on this machine.

The model has the shape of a published one, but few layers and a small vocabulary. One process, or several gloo
processes that divide it, train it for two steps and write a checkpoint. For each stage the peak of each process above
its imports is printed beside the stated one, in GB. Memory is needed for all processes at once: for one layer of 70B in
one process 15 GB; and a folder with room for a checkpoint (12 bytes for each weight).

    python benchmarks/memory.py --model jais-family-6p7b [--layers 1] [--processes 1] [--length 512] [--rows 1]
        [--half] [--activation-checkpointing] [--folder DIR]

Exit status 1 where the highest measured peak of training is not within a tenth of the stated one.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import yaml
from processes import STEPS, run, write_rows

WITHIN = 0.1
VOCABULARY = 4096


def trainer(options: argparse.Namespace, data: Path) -> dict:
    """The YAML of the run."""
    from cerebras_jais.catalog.models import find_model
    from cerebras_jais.catalog.yaml_files import find_preset, preset_yaml

    phase = find_model(options.model).phases[-1].name
    init = yaml.safe_load(preset_yaml(find_preset(f"{options.model}/{phase}")))["trainer"]["init"]
    stock = {"jais_family": "jais", "jais_adapted": "llama"}  # without the rules of the family, which fix a vocabulary
    sizes = {
        "name": stock[init["model"]["name"]],
        "vocab_size": VOCABULARY,
        "num_hidden_layers": options.layers,
        "max_position_embeddings": options.length,
        "loss_scaling": "num_tokens",
    }
    model = {key: value for key, value in init["model"].items() if key != "loss_weight"} | sizes
    loader = {"data_processor": "GptHDF5MapDataProcessor", "data_dir": str(data)}
    return {
        "trainer": {
            "init": {
                "backend": {"backend_type": "CPU"},
                "seed": 1,
                "model": model,
                "optimizer": {"AdamW": {**init["optimizer"]["AdamW"], "learning_rate": 1e-4}},
                "precision": {"enabled": options.half, "fp16_type": "bfloat16", "max_gradient_norm": 1.0},
                "loop": {"max_steps": STEPS},
                "checkpoint": {"steps": STEPS},
                "loggers": [],
            },
            "fit": {"train_dataloader": {**loader, "batch_size": options.rows * options.processes}},
        }
    }


def stated(yaml_file: Path, options: argparse.Namespace) -> dict[str, int]:
    """Bytes of a process, by the stages that are measured."""
    from cerebras_jais.catalog.reader import read_trainer_yaml
    from cerebras_jais.launch.memory import arrangement_of, stages

    (config,) = read_trainer_yaml(yaml_file)
    again = options.activation_checkpointing
    arranged = arrangement_of(config, options.processes, "fsdp", activation_checkpointing=again, backend="cpu")
    sizes = {stage.name: stage.bytes for stage in stages(config.init.model, arranged)}
    writing, _ = sizes.pop("writing"), sizes.pop("reading")
    return {"training": max(sizes.values()), "writing": writing}


def measure(options: argparse.Namespace, folder: Path) -> bool:
    """Print the table; whether training takes what is stated."""
    write_rows(folder / "data", options.rows * options.processes * STEPS, options.length, VOCABULARY)
    yaml_file = folder / "run.yaml"
    yaml_file.write_text(yaml.safe_dump(trainer(options, folder / "data"), sort_keys=False))
    again = ["--activation-checkpointing"] if options.activation_checkpointing else []
    reports, _ = run(folder, "first", options.processes, [str(yaml_file), *again])
    floor = max(report["floor"] for report in reports)
    print(
        f"{options.layers} layers of {options.model}, {options.processes} processes, each {options.rows} x "
        f"{options.length:,} tokens, {'bfloat16' if options.half else 'float32'}; GB above imports of {floor / 1e9:.3f}"
    )
    for stage, size in stated(yaml_file, options).items():
        peaks = [report[stage] for report in reports]
        ratio = max(peaks) / (size - floor)
        measured = " ".join(f"{peak / 1e9:.3f}" for peak in peaks)
        print(f"{stage:9} measured {measured}  stated {(size - floor) / 1e9:.3f}  ratio {ratio:.3f}")
        if stage == "training":
            good = abs(ratio - 1) <= WITHIN
    return good


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="jais-family-6p7b", help="a model of the catalog")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=1, help="of each process")
    parser.add_argument("--half", action="store_true", help="compute in bfloat16")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--folder", type=Path, help="where files go for a while; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        good = measure(options, Path(folder))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
