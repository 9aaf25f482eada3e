"""The table of docs/scaling.md: memory of each GPU for the 20 models of the family, and how many rows it has room for.

    python runs/scaling.py

Nothing is built or read: the numbers are those of `cerebras-jais fit --dry-run --processes N`, by the formulas of
cerebras_jais/launch/memory.py.
"""

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.launch.memory import GB, Arrangement, peak
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import parameter_count

PROCESSES, GIGABYTES = (8, 64, 512), (80, 141)


def arranged(processes: int, rows: int) -> Arrangement:
    """FSDP2 on GPUs in 16 bits with activation checkpointing; a step of one micro-batch."""
    return Arrangement(processes, sharded=True, rows=rows, half=True, activation_checkpointing=True, backend="gpu")


def rows_in(config: DecoderConfig, processes: int, memory: int) -> int:
    """The most rows that a process has room for."""
    fits, too_many = 0, 1
    while peak(config, arranged(processes, too_many)).bytes <= memory:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if peak(config, arranged(processes, middle)).bytes <= memory:
            fits = middle
        else:
            too_many = middle
    return fits


def row_of(name: str, config: DecoderConfig) -> list[str]:
    """Name, parameters in billions, tokens of a row; for each number of processes GB, and the rows in each size."""
    cells = [name, f"{parameter_count(config) / 1e9:.2f}", f"{config.max_position_embeddings:,}"]
    for processes in PROCESSES:
        most = peak(config, arranged(processes, 1))
        rows = [rows_in(config, processes, gigabytes * GB) for gigabytes in GIGABYTES]
        cells += [f"{most.bytes / GB:.1f}", *(str(count or "none") for count in rows)]
    return cells


def table() -> str:
    """The table in Markdown."""
    head = ["model", "10^9 parameters", "tokens of a row"]
    for processes in PROCESSES:
        head += [f"{processes} GPUs: GB", *(f"rows in {gigabytes}" for gigabytes in GIGABYTES)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for model in MODELS:
        config = read_trainer_yaml(f"{model.name}/{model.phases[-1].name}")[0].init.model
        lines.append(row_of(model.name, config))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    print(table(), end="")
