"""One pre-norm decoder that is Jais or Llama by its config, with the Model Zoo's tensor names and mathematics.

`LanguageModel(config).state_dict()` has exactly the keys that a Model Zoo checkpoint holds under `model`, the two
names of the last norm and the tied head included. B batch, L length, H heads, M hidden, F filter, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cerebras_jais.errors import UserError
from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.attention import Positions, SelfAttention
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.initialize import initialize_weights
from cerebras_jais.model.kernels.flex import FlexMask, flex_serves, make_flex_mask
from cerebras_jais.model.kernels.linear import Linear
from cerebras_jais.model.kernels.tiled import Tiling, make_tiling
from cerebras_jais.model.loss import next_token_loss
from cerebras_jais.model.positions import (
    alibi_bias_HLS,
    causal_mask_LS,
    packed_mask_B1LS,
    rotary_angles,
)


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32 whatever the input (Model Zoo: layers/RMSNorm.py)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight.to(x.dtype) * (x * torch.rsqrt(variance + self.eps)).to(x.dtype)


def _norm(config: DecoderConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm_type == "layernorm" else RMSNorm
    return kind(config.hidden_size, eps=config.layer_norm_epsilon)


class AlibiSlopes(nn.Module):
    """Holder of the slopes, [H, 1] float32: a parameter that never trains, because checkpoints carry it."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor(alibi_slopes(num_heads))[:, None], requires_grad=False)


class Embedding(nn.Module):
    """Token embeddings, and the ALiBi slopes where the model has them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "alibi":
            self.position_embed_helper = AlibiSlopes(config.num_heads)


class GatedLinear(nn.Module):
    """The input half of SwiGLU: linear_layer(x) * silu(linear_layer_for_glu(x))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.linear_layer = Linear(config.hidden_size, config.filter_size, bias=config.use_ffn_bias)
        self.linear_layer_for_glu = Linear(config.hidden_size, config.filter_size, bias=config.use_ffn_bias)

    def forward(self, x_BLM: Tensor) -> Tensor:
        out_BLF: Tensor = self.linear_layer(x_BLM) * F.silu(self.linear_layer_for_glu(x_BLM))
        return out_BLF


class OutputLinear(nn.Module):
    """The output half of the feed-forward network, with its dropout."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.linear_layer = Linear(config.filter_size, config.hidden_size, bias=config.use_ffn_bias)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x_BLF: Tensor) -> Tensor:
        out_BLM: Tensor = self.dropout(self.linear_layer(x_BLF))
        return out_BLM


class FeedForward(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.ffn = nn.ModuleList([GatedLinear(config), OutputLinear(config)])

    def forward(self, x_BLM: Tensor) -> Tensor:
        out_BLM: Tensor = self.ffn[1](self.ffn[0](x_BLM))
        return out_BLM


class DecoderLayer(nn.Module):
    """x + attention(norm1(x)), then x + feed_forward(norm3(x))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.norm1 = _norm(config)
        self.dropout1 = nn.Dropout(config.dropout_rate)
        self.norm3 = _norm(config)
        self.ffn = FeedForward(config)

    def forward(self, x_BLM: Tensor, positions: Positions) -> Tensor:
        x_BLM = x_BLM + self.dropout1(self.self_attn(self.norm1(x_BLM), positions))
        out_BLM: Tensor = x_BLM + self.ffn(self.norm3(x_BLM))
        return out_BLM


class TransformerDecoder(nn.Module):
    """The layers and the last norm."""

    def __init__(self, config: DecoderConfig, norm: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = norm


class Decoder(nn.Module):
    """Token ids to hidden states; `ln_f` and `transformer_decoder.norm` are one module, as in the Model Zoo."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding_layer = Embedding(config)
        self.drop_embd = nn.Dropout(config.embedding_dropout)
        self.ln_f = _norm(config)
        self.transformer_decoder = TransformerDecoder(config, self.ln_f)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.use_bias_in_output)
        if config.share_embedding_weights:
            self.lm_head.weight = self.embedding_layer.word_embeddings.weight
        self.activation_checkpointing = False

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_span_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last norm, [B, L, M]; see `LanguageModel.logits` for the arguments."""
        x_BLM = self.embedding_layer.word_embeddings(input_ids_BL) * self.config.embeddings_scale
        x_BLM = self.drop_embd(x_BLM)
        positions = self._positions(input_ids_BL, attention_span_BL, position_ids_BL)
        for layer in self.transformer_decoder.layers:
            if self.activation_checkpointing and self.training:
                x_BLM = checkpoint(layer, x_BLM, positions, use_reentrant=False)
            else:
                x_BLM = layer(x_BLM, positions)
        out_BLM: Tensor = self.ln_f(x_BLM)
        return out_BLM

    def _positions(
        self,
        input_ids_BL: Tensor,
        attention_span_BL: Tensor | None,
        position_ids_BL: Tensor | None,
    ) -> Positions:
        config, device, length = self.config, input_ids_BL.device, input_ids_BL.shape[1]
        all_L = torch.arange(length, device=device)

        cos = sin = None
        if config.position_embedding_type == "rotary":
            angles_at = all_L if position_ids_BL is None else position_ids_BL[:, None]
            cos, sin = rotary_angles(
                angles_at, config.effective_rotary_dim, config.rope_theta, config.pos_scaling_factor
            )
            if attention_span_BL is None:
                return Positions(cos=cos, sin=sin)  # plain causal attention needs no mask of its own

        kernel = self._kernel(length, device, attention_span_BL)
        if kernel is not None:
            return Positions(kernel=kernel, cos=cos, sin=sin)
        if attention_span_BL is not None:
            visible = packed_mask_B1LS(attention_span_BL)
        else:
            visible = causal_mask_LS(length, device)[None, None]
        if config.position_embedding_type == "alibi":
            slopes_H1 = self.embedding_layer.position_embed_helper.slopes
            bias = alibi_bias_HLS(slopes_H1, all_L, all_L, config.pos_scaling_factor)[None]
        else:
            bias = torch.zeros((), device=device)
        bias = torch.where(visible, bias, float("-inf"))
        # A CPU's fused kernel adds a float32 bias to 16-bit scores; a GPU's wants the scores' own type. It is cast once
        # here, and not in each layer, which would keep one mask per layer for the backward pass.
        bias = bias if device.type == "cpu" else bias.to(self._compute_dtype(device))
        return Positions(bias=bias, cos=cos, sin=sin)

    def _kernel(self, length: int, device: torch.device, attention_span_BL: Tensor | None) -> Tiling | FlexMask | None:
        """What attends in linear memory; None where neither kernel has a place, as with dropout."""
        config = self.config
        if config.attention_dropout and self.training:
            return None
        slopes = None
        if config.position_embedding_type == "alibi":
            slopes = self.embedding_layer.position_embed_helper.slopes[:, 0].float() / config.pos_scaling_factor
        ends = None
        if attention_span_BL is not None:
            ends = torch.arange(1, length + 1, device=device) + attention_span_BL.long()
            ends = ends.clamp(max=length)  # a span that goes beyond the row sees no more than its rest
        if device.type == "cpu":
            return make_tiling(length, config.num_heads, slopes, ends)
        if flex_serves(device, self._compute_dtype(device)):
            return make_flex_mask(length, slopes, ends, device)
        return None

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.lm_head.weight.dtype


class LanguageModel(nn.Module):
    """A model of the family with its head and its loss; weights are drawn as the Model Zoo draws them.

    Args:
        config: what the model is. Build under `torch.device("meta")` for a shape without weights.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not self.model.ln_f.weight.is_meta:
            initialize_weights(self, config)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Training loss of a batch, a float32 scalar in nats.

        Args:
            batch: `input_ids`, `labels` and `attention_mask` (which only masks the loss), whole numbers [B, L]; for
                packed batches also `attention_span` and `position_ids`.
        """
        return self._loss(batch, self.config.loss_scaling)

    def mean_loss(self, batch: Mapping[str, Tensor]) -> float:
        """Mean loss of the unmasked tokens of a batch in nats, whatever the loss scaling; no gradient."""
        with torch.no_grad():
            return self._loss(batch, "num_tokens").item()

    def _loss(self, batch: Mapping[str, Tensor], loss_scaling: str) -> Tensor:
        x_BLM = self.model(batch["input_ids"], batch.get("attention_span"), batch.get("position_ids"))
        return next_token_loss(
            x_BLM,
            self.model.lm_head.weight,
            self.model.lm_head.bias,
            batch["labels"],
            batch["attention_mask"],
            logits_scale=self.config.logits_scale,
            loss_scaling=loss_scaling,
            loss_weight=self.config.loss_weight,
        )

    def logits(
        self,
        input_ids_BL: Tensor,
        attention_span_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Scaled logits, [B, L, V].

        Args:
            input_ids_BL: token ids.
            attention_span_BL: per key, how many later tokens of its document may attend to it (packed batches).
            position_ids_BL: position of each token in its document; rotary models use it, ALiBi needs none.
        """
        x_BLM = self.model(input_ids_BL, attention_span_BL, position_ids_BL)
        logits_BLV: Tensor = self.model.lm_head(x_BLM) * self.config.logits_scale
        return logits_BLV

    def check_token_ids(self, input_ids_BL: Tensor) -> None:
        """Raise UserError when an id is not in the vocabulary."""
        lowest, highest = (int(bound) for bound in input_ids_BL.aminmax())
        if lowest < 0 or highest >= self.config.vocab_size:
            raise UserError(
                f"token id {lowest if lowest < 0 else highest} is outside the vocabulary of {self.config.vocab_size}: "
                "the tokenizer does not belong to this model"
            )
