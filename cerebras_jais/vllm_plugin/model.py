"""The Jais decoder of vLLM, over several GPUs and machines (tensor and pipeline parallel).

The mathematics is that of checkpoint_convert/hf_code/modeling_jais.py. Heads, the filter and the vocabulary are divided
among the processes of tensor parallel, layers among those of pipeline parallel. Quantisation is vLLM's own: each linear
layer gets its config.

vLLM reads annotations of these classes at run time, so they are not postponed here.

Shape suffixes: T tokens of all requests, M hidden size, V vocabulary.
"""

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsPP, SupportsQuant
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    is_pp_missing_parameter,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.vllm_plugin.release import (
    ReleaseError,
    aligned_filter,
    prepared_weights,
    release_config,
    slopes_of_rank,
    target_of,
)


class JaisAttention(nn.Module):
    """Causal self-attention with ALiBi; this process's heads."""

    def __init__(self, config: DecoderConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        quantisation, ranks = vllm_config.quant_config, get_tensor_model_parallel_world_size()
        self.c_attn = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_heads,
            bias=True,
            quant_config=quantisation,
            prefix=f"{prefix}.c_attn",
        )
        self.c_proj = RowParallelLinear(
            config.hidden_size, config.hidden_size, bias=True, quant_config=quantisation, prefix=f"{prefix}.c_proj"
        )
        self.attn = Attention(
            config.num_heads // ranks,
            config.head_dim,
            config.attention_scale,
            alibi_slopes=slopes_of_rank(config, get_tensor_model_parallel_rank(), ranks),
            cache_config=vllm_config.cache_config,
            quant_config=quantisation,
            prefix=f"{prefix}.attn",
        )

    def forward(self, x_TM: torch.Tensor) -> torch.Tensor:
        qkv, _ = self.c_attn(x_TM)
        out_TM, _ = self.c_proj(self.attn(*qkv.chunk(3, dim=-1)))
        return out_TM  # type: ignore[no-any-return]


class JaisMLP(nn.Module):
    """SwiGLU: c_proj(silu(c_fc2(x)) * c_fc(x)), both inner layers in one."""

    def __init__(self, config: DecoderConfig, filter_size: int, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        quantisation = vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [filter_size] * 2,
            bias=True,
            quant_config=quantisation,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.c_proj = RowParallelLinear(
            filter_size, config.hidden_size, bias=True, quant_config=quantisation, prefix=f"{prefix}.c_proj"
        )
        self.activation = SiluAndMul()

    def forward(self, x_TM: torch.Tensor) -> torch.Tensor:
        inner, _ = self.gate_up_proj(x_TM)
        out_TM, _ = self.c_proj(self.activation(inner))
        return out_TM  # type: ignore[no-any-return]


class JaisBlock(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: DecoderConfig, filter_size: int, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = JaisAttention(config, vllm_config, f"{prefix}.attn")
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = JaisMLP(config, filter_size, vllm_config, f"{prefix}.mlp")

    def forward(self, h_TM: torch.Tensor) -> torch.Tensor:
        h_TM = h_TM + self.attn(self.ln_1(h_TM))
        return h_TM + self.mlp(self.ln_2(h_TM))  # type: ignore[no-any-return]


@support_torch_compile
class JaisModel(nn.Module):
    """The layers of this process; the first one has the embedding, the last one the last norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = release_config(vllm_config.model_config.hf_config.to_dict())
        self.embeddings_scale = config.embeddings_scale
        first, last = get_pp_group().is_first_rank, get_pp_group().is_last_rank
        has_embedding = first or (last and config.share_embedding_weights)
        self.wte = VocabParallelEmbedding(config.vocab_size, config.hidden_size) if has_embedding else PPMissingLayer()
        # A release quantised in advance has tensors that are not padded here.
        self.is_quantised = getattr(vllm_config.model_config.hf_config, "quantization_config", None) is not None
        ranks = get_tensor_model_parallel_world_size()
        self.filter_size = config.filter_size if self.is_quantised else aligned_filter(config.filter_size, ranks)
        self.start_layer, self.end_layer, self.h = make_layers(
            config.num_hidden_layers,
            lambda prefix: JaisBlock(config, self.filter_size, vllm_config, prefix),
            prefix=f"{prefix}.h",
        )
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon) if last else PPMissingLayer()
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.wte(input_ids)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        if get_pp_group().is_first_rank:
            embedded_TM = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
            h_TM = embedded_TM * self.embeddings_scale
        else:
            assert intermediate_tensors is not None
            h_TM = intermediate_tensors["hidden_states"]
        for block in islice(self.h, self.start_layer, self.end_layer):
            h_TM = block(h_TM)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": h_TM})
        return self.ln_f(h_TM)


class JaisForCausalLM(nn.Module, SupportsPP, SupportsQuant):  # type: ignore[misc]
    """Jais with its head, tied to the embedding if the release says so; vLLM's interface of a language model."""

    packed_modules_mapping: ClassVar = {"gate_up_proj": ["c_fc2", "c_fc"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.decoder_config = config = release_config(vllm_config.model_config.hf_config.to_dict())
        ranks = get_tensor_model_parallel_world_size()
        if config.num_heads % ranks:
            raise ReleaseError(f"config.json: n_head {config.num_heads} cannot be divided among {ranks} GPUs")
        self.transformer = JaisModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if config.share_embedding_weights:
                self.lm_head = self.lm_head.tie_weights(self.transformer.wte)
        else:
            self.lm_head = PPMissingLayer()
        self.logits_processor = LogitsProcessor(config.vocab_size, scale=config.logits_scale)
        self.make_empty_intermediate_tensors = self.transformer.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.transformer.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits [T, V] with muP's factor; None in processes that do not gather them."""
        return self.logits_processor(self.lm_head, hidden_states)  # type: ignore[no-any-return]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Fill this process's parameters; the names of those filled.

        Raises ReleaseError where the tensors are not those of the config (`release.prepared_weights`).
        """
        parameters = dict(self.named_parameters())
        filled: set[str] = set()
        for name, tensor in prepared_weights(
            weights,
            self.decoder_config,
            filter_size=self.transformer.filter_size,
            is_quantised=self.transformer.is_quantised,
            is_elsewhere=lambda parameter: is_pp_missing_parameter(parameter, self),
        ):
            target, part = target_of(name)
            if is_pp_missing_parameter(target, self):
                continue
            if target not in parameters:
                raise ReleaseError(f"{name}: has no place in the model as vLLM quantises it")
            fill = getattr(parameters[target], "weight_loader", default_weight_loader)
            fill(parameters[target], tensor, *(() if part is None else (part,)))
            filled.add(target)
        return filled
