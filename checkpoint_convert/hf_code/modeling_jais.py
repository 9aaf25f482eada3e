"""The Jais decoder for Hugging Face transformers, 4.57 or newer (5.x included), with torch 2.4 or newer.

Mathematics, for token ids t with hidden size M and head size D:

    h = wte[t] * mup_embeddings_scale
    h = h + c_proj(softmax(q.k * s + bias) v)   with q, k, v = split(c_attn(ln_1(h))), s = 1/D under muP, else 1/sqrt(D)
    h = h + c_proj(c_fc(x) * silu(c_fc2(x)))    with x = ln_2(h)
    logits = lm_head(ln_f(h)) * mup_output_alpha * mup_width_scale

bias is ALiBi (alibi_jais.py), and the most negative number where a query may not look (masks_jais.py). It is made of
distances in float32, and stays float32 where the attention can add it so (eager everywhere, SDPA on the CPU); other
kernels want the dtype of the queries. Where rows are short it is built once per forward pass for all layers; long rows
go by blocks (blocks_jais.py), in memory linear in the length, unless attention is eager or its weights are wanted.
It depends on distances only, so left padding needs no positions; position_ids only tell texts in one row apart.

The cache is `cache` in the newest transformers and `past_key_values` in those before; every class takes both names. A
keyword that no class knows is a TypeError: one that is passed over may change the result unseen.

Shape suffixes: B batch, L query length, S key length, H heads, D head size, M hidden size, F filter size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .alibi_jais import JAISRelativePositions
from .blocks_jais import Blocks, mask_bias, needs_blocks
from .configuration_jais import JAISConfig, check_config
from .layers_jais import JAISBlock, bias_dtype
from .masks_jais import Visibility, may_read, one_cache, place_queries

# What the outputs of this transformers call the cache.
CACHE_FIELD = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"

# Keywords of JAISModel that its signature does not name, since generate warns of remote code that names cache_position.
# max_length_q and max_length_k are not read: some kernels want them, and they follow from cu_seq_lens_q.
KEYWORDS = ("cache_position", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class JAISPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every Jais class: initialisation, loading, placement, kernels."""

    config_class = JAISConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["JAISBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_cache_class = True
    _supports_static_cache = True
    _can_compile_fullgraph = True
    # Slopes are computed where a checkpoint has none; old files carry causal masks that nobody needs.
    _keys_to_ignore_on_load_missing = [r"relative_pe\.slopes$"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.(masked_)?bias$"]  # noqa: RUF012

    def get_input_embeddings(self) -> nn.Module:
        return cast(JAISModel, self.base_model).wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        cast(JAISModel, self.base_model).wte = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices get initializer_range * sqrt(mup_width_scale), the last of a branch also / sqrt(2 * n_layer)."""
        config = self.config
        if isinstance(module, (nn.Linear, Conv1D)):
            std = config.initializer_range * math.sqrt(config.mup_width_scale)
            if getattr(module, "ends_residual_branch", False):
                std /= math.sqrt(2 * config.n_layer)
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, JAISRelativePositions) and not getattr(module.slopes, "_is_hf_initialized", False):
            module.slopes.copy_(module.standard_slopes(module.slopes.device).unsqueeze(1))


class JAISModel(JAISPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config: JAISConfig):
        super().__init__(config)
        check_config(config)  # keys may have been set after the configuration was made
        self.wte: nn.Module = nn.Embedding(config.vocab_size, config.n_embd)
        self.relative_pe = JAISRelativePositions(config)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([JAISBlock(config, layer_idx) for layer_idx in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast | tuple:
        """Hidden states after the last LayerNorm.

        Args:
            input_ids: [B, L] integers; or inputs_embeds: [B, L, M], rows of the embedding, not yet scaled.
            attention_mask: [B, S] with 0 for padding; or [B, 1, L, S], boolean (True: may look) or additive, which
                says all there is to say about where a query may look, whatever position_ids are.
            position_ids: [B, L]. Where they begin anew another text begins, which does not see the one before; a cache
                cannot hold several texts.
            cache, past_key_values: a Cache (or the (key, value) pairs of each layer) of the tokens before these.
            token_type_ids: zeros, as tokenizers make them: Jais has one type of token.
            cache_position (keyword): the positions [L] of these tokens; the cache knows them itself.
            seq_idx (keyword): the number [B, L] of each token's text in its row.
            cu_seq_lens_q (keyword): 0 and the ends of the texts, counted over all rows; cu_seq_lens_k is the same.

        Raises:
            TypeError: a keyword is unknown.
            ValueError: an argument does not fit the others.
        """
        for name in kwargs:
            if name not in KEYWORDS:
                raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        cache = one_cache(cache, past_key_values)
        wants_cache = use_cache or cache is not None
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return_dict = self.config.return_dict if return_dict is None else return_dict

        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        if token_type_ids is not None and may_read(token_type_ids) and bool((token_type_ids != 0).any()):
            raise ValueError("token_type_ids must be 0: Jais has one type of token")
        cache = self._prepare_cache(cache, use_cache)

        # Not in place: the embeddings may be a leaf that requires a gradient, or belong to the caller.
        h_BLM = self.drop(inputs_embeds * self.config.mup_embeddings_scale)
        positions_L = place_queries(h_BLM, cache, kwargs.get("cache_position"))
        sees = Visibility(
            h_BLM,
            cache,
            positions_L,
            attention_mask,
            position_ids,
            **{name: kwargs.get(name) for name in ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")},
        )
        is_eager = self.config._attn_implementation == "eager" or output_attentions
        dtype = torch.float32 if is_eager else bias_dtype(h_BLM)
        if is_eager or not needs_blocks(sees, self.config.n_head):
            blocks = None
            bias_BHLS = self.relative_pe(positions_L, sees.positions_of_keys(), sees.lengths())
            bias = mask_bias(bias_BHLS.to(h_BLM.device), sees, dtype)
        else:
            blocks = Blocks(sees, self.relative_pe.train_seq_len, dtype)
            bias = self.relative_pe.scaled_slopes()
        if cache is not None and sees.texts and may_read(h_BLM):
            if wants_cache:
                raise ValueError("a cache holds one text a row, and these rows hold several: set use_cache=False")
            cache = None

        all_hidden_states = [h_BLM]
        all_attentions = []
        for block in self.h:
            # The bias goes by position, as does all that may need a gradient: re-entrant checkpointing wants it so.
            h_BLM, weights_BHLS = block(
                h_BLM,
                bias,
                past_key_values=cache,
                positions_L=positions_L,
                output_attentions=output_attentions,
                blocks=blocks,
            )
            if output_attentions:
                all_attentions.append(weights_BHLS)
            if output_hidden_states:
                all_hidden_states.append(h_BLM)
        h_BLM = self.ln_f(h_BLM)
        all_hidden_states[-1] = h_BLM  # the last entry is normalised, as in GPT-2

        output = BaseModelOutputWithPast(
            last_hidden_state=h_BLM,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
            **{CACHE_FIELD: cache if use_cache else None},
        )
        return output if return_dict else output.to_tuple()

    def _prepare_cache(self, cache, use_cache: bool) -> Cache | None:
        if cache is not None and not isinstance(cache, Cache):
            pairs, cache = cache, DynamicCache()
            for layer_idx, (keys_BHSD, values_BHSD) in enumerate(pairs):
                cache.update(keys_BHSD, values_BHSD, layer_idx)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if cache is not None:
                raise ValueError(
                    "gradient checkpointing runs each block twice and cannot use a cache or past_key_values"
                )
            return None
        return DynamicCache() if cache is None and use_cache else cache


class JAISLMHeadModel(JAISPreTrainedModel, GenerationMixin):
    """The decoder with its language model head, tied to the embedding if tie_word_embeddings."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: JAISConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # Trainer then does not count the first label, which nothing predicts
        self.transformer = JAISModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        token_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, L, V], and the loss if labels are given.

        Args:
            labels: [B, L], usually the input_ids; shifted in here; -100 counts nothing.
            logits_to_keep: 0 for logits of all positions, n for the last n, or the indices of the wanted positions.
            shift_labels (keyword): labels that are shifted already; they are used in place of labels.
            num_items_in_batch (keyword): the loss is the sum over tokens divided by it; without it, the mean.
        The other arguments are those of JAISModel.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        shift_labels = kwargs.pop("shift_labels", None)
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.transformer(  # in the order of its signature
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
            output_attentions, output_hidden_states, True, token_type_ids, cache, **kwargs,
        )  # fmt: skip
        h_BLM = outputs.last_hidden_state
        if not isinstance(logits_to_keep, int):
            h_BLM = h_BLM[:, logits_to_keep]
        elif logits_to_keep > 0:
            h_BLM = h_BLM[:, -logits_to_keep:]
        elif logits_to_keep < 0:
            raise ValueError(f"logits_to_keep must not be negative, got {logits_to_keep}")
        logits_BLV = self.lm_head(h_BLM) * self.config.logit_scale

        loss = None
        if labels is not None or shift_labels is not None:
            if not isinstance(logits_to_keep, int) or logits_to_keep > 0:
                raise ValueError("labels need the logits of all positions: leave logits_to_keep at 0")
            loss = _causal_loss(logits_BLV, labels, shift_labels, num_items_in_batch)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BLV,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_FIELD: getattr(outputs, CACHE_FIELD)},
        )
        return output if return_dict else output.to_tuple()


class JAISForSequenceClassification(JAISPreTrainedModel):
    """The decoder with a linear classifier on the last token of each row that is not padding.

    The scores carry the same muP factor as the logits of the language model.
    """

    def __init__(self, config: JAISConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.transformer = JAISModel(config)
        self.score = nn.Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast | tuple:
        """Scores [B, num_labels], and the loss if labels are given; the other arguments are those of JAISModel.

        Padding is what pad_token_id says; without input_ids it is what attention_mask says.

        Args:
            labels: [B] class indices, [B, num_labels] for several labels, or [B] numbers if num_labels is 1.
            num_items_in_batch (keyword): the number of labels that the loss is a mean of, over all the batches of a
                step: the sum over the labels of this one is divided by it.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.transformer(  # in the order of its signature
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
            output_attentions, output_hidden_states, True, token_type_ids, cache, **kwargs,
        )  # fmt: skip
        h_BLM = outputs.last_hidden_state
        last_B = self._last_tokens(input_ids, attention_mask, h_BLM)
        h_BM = h_BLM[torch.arange(h_BLM.shape[0], device=h_BLM.device), last_B]
        scores_BN = self.score(h_BM) * self.config.logit_scale

        output = SequenceClassifierOutputWithPast(
            loss=None if labels is None else self._labels_loss(scores_BN, labels, num_items_in_batch),
            logits=scores_BN,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_FIELD: getattr(outputs, CACHE_FIELD)},
        )
        return output if return_dict else output.to_tuple()

    def _last_tokens(self, input_ids, attention_mask, h_BLM: torch.Tensor) -> torch.Tensor:
        length = h_BLM.shape[1]
        if input_ids is not None and self.config.pad_token_id is not None:
            is_token_BL = input_ids != self.config.pad_token_id
        elif input_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            is_token_BL = attention_mask[:, -length:] != 0
        elif h_BLM.shape[0] == 1 or input_ids is None:
            return torch.full((h_BLM.shape[0],), length - 1, device=h_BLM.device)
        else:
            raise ValueError("a batch of several rows needs config.pad_token_id, to find the last token of each")
        positions_L = torch.arange(length, device=h_BLM.device)
        return (is_token_BL.to(h_BLM.device) * positions_L).argmax(-1)

    def _labels_loss(self, scores_BN: torch.Tensor, labels: torch.Tensor, num_items_in_batch) -> torch.Tensor:
        problem = self.config.problem_type
        if problem is None:
            is_class = self.num_labels > 1 and labels.dtype in (torch.long, torch.int)
            problem = "regression" if self.num_labels == 1 else "multi_label_classification"
            problem = "single_label_classification" if is_class else problem
            self.config.problem_type = problem
        if problem == "regression":
            return _loss(functional.mse_loss, scores_BN, labels.view_as(scores_BN).float(), num_items_in_batch)
        if problem == "single_label_classification":
            return _loss(functional.cross_entropy, scores_BN, labels.view(-1).long(), num_items_in_batch)
        if problem == "multi_label_classification":
            return _loss(functional.binary_cross_entropy_with_logits, scores_BN, labels.float(), num_items_in_batch)
        raise ValueError(f"problem_type of the configuration is unknown: {problem!r}")


def _causal_loss(logits_BLV: torch.Tensor, labels_BL, shift_labels_BL, num_items_in_batch) -> torch.Tensor:
    """Cross entropy of the next token."""
    if shift_labels_BL is None:
        logits_BLV, shift_labels_BL = logits_BLV[:, :-1], labels_BL[:, 1:]
    return _loss(functional.cross_entropy, logits_BLV.flatten(0, 1), shift_labels_BL.flatten(), num_items_in_batch)


def _loss(function, scores: torch.Tensor, labels: torch.Tensor, num_items_in_batch) -> torch.Tensor:
    """The mean of the losses, in float32; or their sum divided by num_items_in_batch."""
    scores, labels = scores.float(), labels.to(scores.device)
    if num_items_in_batch is None:
        return function(scores, labels)
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(scores.device)
    return function(scores, labels, reduction="sum") / num_items_in_batch
