"""Params of runs as earlier releases of the Model Zoo wrote them."""

from tests.checkpoint_convert.examples import jais_section, llama_section

NO_MUP = {"mup_base_hidden_size": None, "mup_base_filter_size": None, "output_logits_alpha": None}


def drawn(std, name="truncated_normal", **bounds):
    return {"name": name, "mean": 0.0, "std": std, **bounds}


# Initializers of the deprecated form of muP are scaled already; the cases differ in which of them are given.
INITIALIZERS = {
    "as-published": {
        "initializer": drawn(0.05, a=-0.1, b=0.1),
        "output_layer_initializer": drawn(0.025, a=-0.05, b=0.05),
    },
    "none": {"initializer": None, "embedding_initializer": None, "initializer_range": 0.03},
    "one": {"initializer": drawn(0.05)},
    "output-alone": {"initializer": None, "output_layer_initializer": drawn(0.01)},
    "all": {
        "initializer": drawn(0.05, "normal"),
        "ffn_initializer": drawn(0.04),
        "output_layer_initializer": drawn(0.01, a=-0.03, b=0.02),
        "ffn_output_layer_initializer": drawn(0.02, "normal"),
    },
}
DEPRECATED = {
    f"jais-{name}": jais_section(**NO_MUP, output_logits_scale=0.365, **given) for name, given in INITIALIZERS.items()
} | {
    "jais-untied-no-logits-scale": jais_section(**NO_MUP, share_embedding_weights=False, scale_qk_dot_by_d=None),
    "llama": llama_section(initializer=drawn(0.05)),
}
"""Sections in the deprecated form of muP; the width is in the optimizer."""

WIDTH = 1 / 3  # of a base model of hidden size 16


def in_first_form(section, adjust_learning_rate):
    """Params of releases up to 2.2: sections at the top, precision inside `model`, the optimizer's kind as a key."""
    return {
        "train_input": {"data_processor": "GptHDF5MapDataProcessor", "batch_size": 8, "micro_batch_size": "auto"},
        "model": {
            **{key: value for key, value in section.items() if key != "name"},
            "mixed_precision": True,
            "fp16_type": "cbfloat16",
        },
        "optimizer": {
            "optimizer_type": "AdamW",
            "weight_decay": 0.1,
            "adjust_learning_rate": adjust_learning_rate,
            "learning_rate": [{"scheduler": "Linear", "initial_learning_rate": 0.0, "end_learning_rate": 0.01}],
            "log_summaries": True,
        },
        "runconfig": {"max_steps": 10},
    }


def in_trainer_form(section, adjust_learning_rate):
    """Params from release 2.3 on."""
    optimizer = {"AdamW": {"weight_decay": 0.1, "adjust_learning_rate": adjust_learning_rate}}
    return {"trainer": {"init": {"model": dict(section), "optimizer": optimizer}}}
