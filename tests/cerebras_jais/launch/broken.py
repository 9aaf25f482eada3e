"""Deliberately broken trainer YAML: each a small edit of a config of ours, and what must be said about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = "jais-family-590m/pretrain"
LARGE = "jais-family-30b-8k/8k"
CHAT = "jais-adapted-70b-chat/chat"
STAGE_1 = "jais-adapted-7b/stage-1"
PHASES = "tiny/context"
TINY = "tiny/jais"


@dataclass(frozen=True)
class Broken:
    """One edit: the `nth` `old` of a config becomes `new`; the error names `key`, the line with `at`, and `remedy`.

    `at` is looked for from the edit on (from the top if it is not there); by default it is the edit itself.
    `modelzoo` says whether the Model Zoo's own validation lets it through.
    """

    name: str
    config: str
    old: str
    new: str
    key: str
    remedy: str
    modelzoo: bool
    at: str = ""
    nth: int = 0

    def text(self) -> str:
        """The broken YAML."""
        text, begin = self._found()
        return text[:begin] + self.new + text[begin + len(self.old) :]

    def line(self) -> int:
        """The line that the error must name."""
        text, begin = self.text(), self._found()[1]
        if self.at:
            begin = text.index(self.at, begin) if self.at in text[begin:] else text.index(self.at)
        return text[:begin].count("\n") + 1

    def _found(self) -> tuple[str, int]:
        text = (CONFIGS / f"{self.config}.yaml").read_text(encoding="utf-8")
        begin = -1
        for _ in range(self.nth + 1):
            begin = text.index(self.old, begin + 1)
        return text, begin


def _cluster(lines: str) -> str:
    return f"backend_type: CSX\n      cluster_config:\n        {lines}"


_CSX = "backend_type: CSX"
_PRECISION = "init.precision"
_MODEL = "init.model"
_MICRO = "csx.performance.micro_batch_size: auto"
_STATES = "load_checkpoint_states: 'model,optimizer,global_step'"
_STATES_KEY = "init.callbacks[1].LoadCheckpointStates.load_checkpoint_states"
_CLUSTER = "init.backend.cluster_config"
_TRAIN = "fit.train_dataloader"

BROKEN = (
    # backend, cluster, flags
    Broken("unknown backend", SMALL, _CSX, "backend_type: CS3", "init.backend.backend_type", "use CSX, CPU or GPU", True),
    Broken("unknown backend key", SMALL, _CSX, f"{_CSX}\n      compile_dirs: c", "init.backend.compile_dirs", "did you mean 'compile_dir'?", True, "compile_dirs"),
    Broken("unknown device", SMALL, "seed: 1", "device: GPU\n    seed: 1", "init.device", "remove one of them", True),
    Broken("unknown cluster option", SMALL, _CSX, _cluster("num_csxs: 4"), f"{_CLUSTER}.num_csxs", "did you mean 'num_csx'?", True, "num_csxs"),
    Broken("no systems", SMALL, _CSX, _cluster("num_csx: 0"), f"{_CLUSTER}.num_csx", "must be a whole number from 1", True, "num_csx"),
    Broken("unknown priority", SMALL, _CSX, _cluster("job_priority: high"), f"{_CLUSTER}.job_priority", "'p1', 'p2' or 'p3'", True, "job_priority"),
    Broken("label without value", SMALL, _CSX, _cluster("job_labels: [mine]"), f"{_CLUSTER}.job_labels", "must be key=value", True, "job_labels"),
    Broken("more systems than samples", SMALL, _CSX, _cluster("num_csx: 2000"), f"{_TRAIN}.batch_size", "raise it to 2000 or more", True, "batch_size: 1120"),
    Broken("unknown flag", SMALL, _MICRO, "csx.performance.microbatchsize: auto", "init.callbacks[0].ScopedTrainFlags", "did you mean 'csx.performance.micro_batch_size'?", True, "- ScopedTrainFlags"),
    Broken("flag with a value that cannot be", SMALL, _MICRO, "csx.performance.micro_batch_size: many", "init.callbacks[0].ScopedTrainFlags", "must be auto, explore, a whole number above 0", True, "- ScopedTrainFlags"),
    Broken("compile and validate only", SMALL, _CSX, f"{_CSX}\n      compile_only: true\n      validate_only: true", "init.backend.validate_only", "remove this or compile_only", True, "validate_only"),
    # muP
    Broken("one muP width alone", SMALL, "mup_base_filter_size: 682.6666666666666", "#", f"{_MODEL}.mup_base_filter_size", "give both mup_base_* sizes or neither", False, "model:"),
    Broken("constants of 30b in a small model", SMALL, "embeddings_scale: 9.1705785388303", "embeddings_scale: 14.6", f"{_MODEL}.embeddings_scale", "give 9.1705785388303", True),
    Broken("both constants of 30b in a small model", SMALL, "embeddings_scale: 9.1705785388303 # published: config.json of jais-family-590m and others\n      output_logits_alpha: 1.09518349815769", "embeddings_scale: 14.6\n      output_logits_alpha: 2.22", f"{_MODEL}.embeddings_scale", "give 9.1705785388303", True),
    Broken("a constant of the small models in 30b", LARGE, "output_logits_alpha: 2.22", "output_logits_alpha: 1.0951835", f"{_MODEL}.output_logits_alpha", "give 2.22", True),
    Broken("filter scaled unlike the width", SMALL, "mup_base_filter_size: 682.6666666666666", "mup_base_filter_size: 1024.0", f"{_MODEL}.mup_base_filter_size", "give 682.6666666666666", True),
    Broken("another base width", SMALL, "mup_base_hidden_size: 256\n      mup_base_filter_size: 682.6666666666666", "mup_base_hidden_size: 512\n      mup_base_filter_size: 1365.3333333333333", f"{_MODEL}.mup_base_hidden_size", "every jais-family model has 256", True),
    Broken("initial std of the other set", SMALL, "std: 0.0867", "std: 0.073", f"{_MODEL}.initializer", "give 0.0867", True, "initializer: *initializer"),
    Broken("attention not divided by the width", SMALL, "scale_qk_dot_by_d: true", "scale_qk_dot_by_d: false", f"{_MODEL}.scale_qk_dot_by_d", "set it to true", True),
    # model
    Broken("misspelt model key", SMALL, "hidden_size: 1536", "hiden_size: 1536", f"{_MODEL}.hiden_size", "did you mean 'hidden_size'?", False),
    Broken("unknown model", SMALL, "name: jais_family", "name: jais_famly", f"{_MODEL}.name", "whose models have jais_family or jais_adapted", False),
    Broken("rotary field beside ALiBi", SMALL, "position_embedding_type: alibi", "position_embedding_type: alibi\n      rotary_dim: 128", f"{_MODEL}.rotary_dim", "remove the key", True, "rotary_dim"),
    Broken("rotary positions for a quarter of the head", CHAT, "rotary_dim: 128", "rotary_dim: 32", f"{_MODEL}.rotary_dim", "set it to 128", True),
    Broken("vocabulary of another tokenizer", SMALL, "vocab_size: 84992", "vocab_size: 64000", f"{_MODEL}.vocab_size", "84992 entries; give that", True),
    Broken("heads that do not divide the width", SMALL, "num_heads: 12", "num_heads: 13", f"{_MODEL}.num_heads", "must divide hidden_size 1536", True),
    Broken("key groups that do not divide the heads", CHAT, "num_kv_groups: 8", "num_kv_groups: 7", f"{_MODEL}.extra_attention_params", "divides num_heads 64", True, "extra_attention_params"),
    Broken("loss weight of the phase before", LARGE, "loss_weight: 0.0001220703125", "loss_weight: 0.00048828125", f"{_MODEL}.loss_weight", "1/max_position_embeddings = 0.00012207", True),
    Broken("pattern that finds no tensor", STAGE_1, "'transformer_decoder\\.'", "'transfomer_decoder\\.'", f"{_MODEL}.frozen_parameters", "names are like model.embedding_layer", True, "frozen_parameters"),
    Broken("everything frozen", STAGE_1, "'ln_f\\.'", "'.'", f"{_MODEL}.frozen_parameters", "freeze less", True, "frozen_parameters"),
    # schedules and length
    Broken("schedule that ends before the run", SMALL, "total_iters: 209259", "total_iters: 200000", "init.schedulers[0]", "raise total_iters by 9259", True, "- SequentialLR"),
    Broken("run that ends before its schedule", SMALL, "max_steps: 209422", "max_steps: 200000", "init.schedulers[0]", "raise max_steps to 209422", True, "- SequentialLR"),
    Broken("rate that jumps", SMALL, "initial_learning_rate: 0.015625", "initial_learning_rate: 0.0015625", "init.schedulers[0]", "make them equal", True, "- SequentialLR"),
    Broken("misspelt schedule", SMALL, "- LinearLR:", "- LinerLR:", "init.schedulers[0].SequentialLR.schedulers[0].LinerLR", "did you mean 'LinearLR'?", False),
    Broken("phase that ends where it begins", PHASES, "max_steps: 60", "max_steps: 30", "init.loop.max_steps", "must be larger than 30 (steps continue from the previous phase)", True),
    Broken("no length", SMALL, "max_steps: 209422", "eval_steps: 10 #", "init.loop", "give one of max_steps, num_steps and num_epochs", True, "loop:"),
    # precision
    Broken("cbfloat16 with a fixed loss scale", SMALL, "loss_scaling_factor: dynamic", "loss_scaling_factor: 1.0", f"{_PRECISION}.loss_scaling_factor", "set it to dynamic", True),
    Broken("float32 on a CS system", SMALL, "enabled: true", "enabled: false", f"{_PRECISION}.enabled", "set it to true", True),
    Broken("unknown half type", SMALL, "fp16_type: cbfloat16", "fp16_type: fp16", f"{_PRECISION}.fp16_type", "'float16', 'bfloat16' or 'cbfloat16'", False),
    Broken("loss scales the wrong way round", SMALL, "loss_scaling_factor: dynamic", "loss_scaling_factor: dynamic\n      min_loss_scale: 8.0\n      max_loss_scale: 2.0", f"{_PRECISION}.min_loss_scale", "swap them", True, "min_loss_scale"),
    Broken("two ways of clipping", SMALL, "max_gradient_norm: 1.0", "max_gradient_norm: 1.0\n      max_gradient_value: 1.0", f"{_PRECISION}.max_gradient_value", "remove max_gradient_norm or this", True, "max_gradient_value"),
    # checkpoints
    Broken("no checkpoint", SMALL, "steps: 5000", "steps: 0", "init.checkpoint.steps", "give a number of steps", True),
    Broken("unknown state", LARGE, _STATES, "load_checkpoint_states: 'model,optimiser,global_step'", _STATES_KEY, "known: all, dataloader, global_step", True),
    Broken("states with spaces", LARGE, _STATES, "load_checkpoint_states: 'model, optimizer'", _STATES_KEY, "write the names without spaces", True),
    Broken("key given twice", SMALL, "seed: 1", "seed: 1\n    seed: 2", "init.seed", "remove one", True, "seed: 2"),
    Broken("misspelt callback", SMALL, "- ScopedTrainFlags", "- ScopedTrainFlag", "init.callbacks[0].ScopedTrainFlag", "did you mean 'ScopedTrainFlags'?", False),
    # data
    Broken("length of the data section", SMALL, "batch_size: 1120", "max_sequence_length: 1024\n      batch_size: 1120", f"{_TRAIN}.max_sequence_length", "make them equal", True),
    Broken("misspelt key of a mixture", SMALL, "weight: 283", "wieght: 283", f"{_TRAIN}.mixture[0].wieght", "did you mean 'weight'?", True),
    Broken("mixture of nothing", SMALL, "weight: 283 # published: card, billions of tokens\n      - data_dir: data/jais-family/2048/arabic/train\n        weight: 141 # published: card, billions of tokens\n      - data_dir: data/jais-family/2048/code/train\n        weight: 56", "weight: 0\n      - data_dir: a\n        weight: 0", f"{_TRAIN}.mixture", "give each part its share", True, "mixture:"),
    Broken("evaluation on data that is not packed", CHAT, "use_vsl: true\n", "use_vsl: false\n", "fit.val_dataloader.use_vsl", "pack both the same way", True),
    Broken("misspelt data processor", SMALL, "data_processor: GptHDF5MapDataProcessor", "data_processor: GptHDF5MapDataProcesor", f"{_TRAIN}.data_processor", "did you mean 'GptHDF5MapDataProcessor'?", False),
    Broken("empty batches", SMALL, "batch_size: 1120", "batch_size: 0", f"{_TRAIN}.batch_size", "must be a whole number from 1", False),
    # several phases
    Broken("phases of different widths", PHASES, "num_hidden_layers: 4", "num_hidden_layers: 5", f"{_MODEL}.num_hidden_layers", "make them equal", True, nth=1),
    Broken("phases on different backends", PHASES, "backend_type: CPU", "backend_type: GPU", "init.backend.backend_type", "a process can have one only", True, nth=1),
)  # fmt: skip
