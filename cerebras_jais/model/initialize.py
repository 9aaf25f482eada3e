"""Initial weights as the Model Zoo draws them, with muP's scaling of their standard deviation.

Source: Model Zoo models/nlp/gpt2/gpt2_model.py (choice of initializer) and common/utils/model/mup_utils.py (scaling).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.config import DecoderConfig, Initializer
from cerebras_jais.model.tensors import Kind, ModelTensor, tensors


def weight_initializers(config: DecoderConfig) -> dict[Kind, Initializer]:
    """The distribution of each kind of weight that is drawn.

    Under muP, with m_d = `width_multiplier`, m_f = `filter_multiplier` and n layers, the spread of attention and
    ffn_input is multiplied by m_d^-1/2, of attention_output by (2 n m_d)^-1/2 and of ffn_output by (2 n m_f)^-1/2.
    """
    default = config.default_initializer
    depth = (2 * config.num_hidden_layers) ** -0.5
    attention = config.initializer or default
    ffn_input = config.ffn_initializer or config.initializer or default
    attention_output = config.output_layer_initializer
    ffn_output = config.ffn_output_layer_initializer
    if config.is_mup:
        width = config.width_multiplier**-0.5
        attention, ffn_input = attention.scaled(width), ffn_input.scaled(width)
        attention_output = (attention_output or default).scaled(width * depth)
        ffn_output = (ffn_output or default).scaled(config.filter_multiplier**-0.5 * depth)
    elif attention_output is None and config.initializer is None:
        attention_output = default.scaled(depth)
    # Where not given, the output projections follow the initializer of their block.
    ffn_output = ffn_output or attention_output or ffn_input
    attention_output = attention_output or attention
    return {
        "embedding": config.embedding_initializer or default,
        "attention": attention,
        "attention_output": attention_output,
        "ffn_input": ffn_input,
        "ffn_output": ffn_output,
        "head": Initializer("normal", 0.0, config.initializer_range),
    }


@torch.no_grad()
def initialize_weights(model: nn.Module, config: DecoderConfig) -> None:
    """Draw every weight in place from torch's global generator; biases become zero, norms and slopes as they begin.

    Args:
        model: a module with the parameters of `tensors(config)`, freshly built.
        config: what it is.
    """
    draws, parameters = weight_initializers(config), dict(model.named_parameters())
    for tensor in tensors(config):
        if tensor.same_as is None:
            _begin(parameters[tensor.name], tensor, config, draws)


@torch.no_grad()
def initial_weights(shapes: nn.Module, config: DecoderConfig, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The weights that a model built on a device would have, float32, one after another: first name and values.

    Only one of them is in memory at a time.

    Args:
        shapes: the model on the meta device, where its parameters stay.
        config: what it is.
        device: where values are drawn, from torch's generator for it.
    """
    # Building a module draws values that `initialize_weights` then replaces; they move the generator on.
    for module in shapes.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to_empty(device=device, recurse=False).reset_parameters()
            module.to(device="meta")
    draws = weight_initializers(config)
    for tensor in tensors(config):
        if tensor.same_as is None:
            values = torch.empty(tensor.shape, device=device)
            _begin(values, tensor, config, draws)
            yield tensor.name, values


def _begin(values: Tensor, tensor: ModelTensor, config: DecoderConfig, draws: Mapping[Kind, Initializer]) -> None:
    """Give a tensor of the model the values that it begins with."""
    if tensor.kind in draws:
        _draw(values, draws[tensor.kind])
    elif tensor.kind == "slopes":
        values.copy_(torch.tensor(alibi_slopes(config.num_heads))[:, None])
    else:
        values.fill_(1.0 if tensor.kind == "norm" and tensor.name.endswith("weight") else 0.0)


def _draw(weight: Tensor, initializer: Initializer) -> None:
    if initializer.name == "normal":
        nn.init.normal_(weight, initializer.mean, initializer.std)
    else:
        assert initializer.a is not None and initializer.b is not None
        nn.init.trunc_normal_(weight, initializer.mean, initializer.std, initializer.a, initializer.b)
