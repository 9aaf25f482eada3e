"""Configuration of the Jais decoder: GPT-2 layout, ALiBi positions, SwiGLU and maximal-update (muP) scales.

Needs only transformers (4.57 or newer, 5.x included).
"""

from difflib import get_close_matches
from inspect import signature
from typing import ClassVar

from transformers import PretrainedConfig


class JAISConfig(PretrainedConfig):
    """Shape and constants of one Jais model; keys and defaults are those of the published `config.json` files.

    Args:
        vocab_size: rows of the embedding.
        n_positions: context length of training. Informative: ALiBi needs no table, so longer inputs run too.
        n_embd, n_layer, n_head: hidden size, number of blocks, number of heads; n_head divides n_embd.
        n_inner: width of each of the two SwiGLU branches; None means 4 * n_embd.
        activation_function: "swiglu", the only one that Jais has.
        position_embedding_type: "alibi", the only one that Jais has.
        resid_pdrop, embd_pdrop, attn_pdrop: dropout probabilities.
        layer_norm_epsilon: epsilon of every LayerNorm.
        initializer_range: standard deviation of new embeddings; matrices get it times sqrt(mup_width_scale).
        scale_attn_weights: divide q.k by sqrt(head size), or by the head size if mup_scale_qk_dot_by_d.
        scale_attn_by_inverse_layer_idx: divide q.k by (layer index + 1) as well.
        mup_width_scale: hidden size of the proxy model over n_embd.
        mup_embeddings_scale: factor on the embeddings.
        mup_output_alpha: logits are multiplied by mup_output_alpha * mup_width_scale.
        mup_scale_qk_dot_by_d: see scale_attn_weights.
        alibi_scaling: None, or {"type": "linear", "factor": f} to divide every slope by f > 1, or
            {"type": "linear", "train_seq_len": n} to divide them by (input length / n) once the input is longer than n.
        alibi_trainable_slopes: whether the ALiBi slopes are trained; if not they never receive a gradient.
        tie_word_embeddings: whether the output head is the embedding matrix.

    The first Jais files name three things otherwise. They are read too: `embeddings_scale` is mup_embeddings_scale,
    `scale_qk_dot_by_d` is mup_scale_qk_dot_by_d, and `width_scale` is the product mup_output_alpha * mup_width_scale.
    How that product splits is not written there, so it goes whole into mup_output_alpha: logits only see the product.

    Keys of other models and of users are kept, as in every configuration, but for those that would ask for what Jais
    does not do, and those that are nearly one of the keys above.

    Raises:
        ValueError: names the key that cannot be right and what is allowed.
    """

    model_type = "jais"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "cache"]
    attribute_map: ClassVar = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size=50257,
        n_positions=1024,
        n_embd=768,
        n_layer=12,
        n_head=12,
        n_inner=None,
        activation_function="swiglu",
        position_embedding_type="alibi",
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        mup_width_scale=1.0,
        mup_embeddings_scale=1.0,
        mup_output_alpha=1.0,
        mup_scale_qk_dot_by_d=False,
        alibi_scaling=None,
        alibi_trainable_slopes=False,
        use_cache=True,
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=None,
        tie_word_embeddings=True,
        **kwargs,
    ):
        if "embeddings_scale" in kwargs:
            _refuse_both("embeddings_scale", mup_embeddings_scale=mup_embeddings_scale)
            mup_embeddings_scale = kwargs.pop("embeddings_scale")
        if "width_scale" in kwargs:
            _refuse_both("width_scale", mup_output_alpha=mup_output_alpha, mup_width_scale=mup_width_scale)
            mup_output_alpha = kwargs.pop("width_scale")
        if "scale_qk_dot_by_d" in kwargs:
            _refuse_both("scale_qk_dot_by_d", mup_scale_qk_dot_by_d=mup_scale_qk_dot_by_d, default=False)
            mup_scale_qk_dot_by_d = kwargs.pop("scale_qk_dot_by_d")
        _refuse_misspelt(kwargs)

        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_inner = n_inner
        self.activation_function = activation_function
        self.position_embedding_type = position_embedding_type
        self.resid_pdrop = resid_pdrop
        self.embd_pdrop = embd_pdrop
        self.attn_pdrop = attn_pdrop
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.scale_attn_weights = scale_attn_weights
        self.scale_attn_by_inverse_layer_idx = scale_attn_by_inverse_layer_idx
        self.mup_width_scale = mup_width_scale
        self.mup_embeddings_scale = mup_embeddings_scale
        self.mup_output_alpha = mup_output_alpha
        self.mup_scale_qk_dot_by_d = mup_scale_qk_dot_by_d
        self.alibi_scaling = alibi_scaling
        self.alibi_trainable_slopes = alibi_trainable_slopes
        self.use_cache = use_cache

        # Attributes of every configuration in transformers 4, which would set them to its own defaults; not so in 5.
        common = {
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "tie_word_embeddings": tie_word_embeddings,
        }
        super().__init__(**common, **kwargs)
        check_config(self)  # last, since standard names such as hidden_size have reached the keys only now

    @property
    def logit_scale(self):
        """The factor on the logits, mup_output_alpha * mup_width_scale, under the name that TRL's losses read."""
        return self.mup_output_alpha * self.mup_width_scale

    def to_diff_dict(self):
        """What config.json will hold; tie_word_embeddings always, since its default is not the same everywhere."""
        written = super().to_diff_dict()
        written["tie_word_embeddings"] = self.tie_word_embeddings
        return written


# What other models do and Jais does not; a value that is not false asks for it. Other such keys change nothing here:
# reorder_and_upcast_attn, for one, asks for scores in float32, which they always are.
NOT_IN_JAIS = (
    "add_cross_attention",
    "is_encoder_decoder",
    "pruned_heads",
    "rope_parameters",
    "rope_scaling",
    "rotary_dim",
    "sliding_window",
)


def check_config(config):
    """Raises ValueError, naming the key, if the model of `config` cannot be built."""
    for key in NOT_IN_JAIS:
        if getattr(config, key, None):
            raise ValueError(f"Jais has no {key}: leave it out, got {getattr(config, key)!r}")
    for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        if not _is_integer(getattr(config, key)) or getattr(config, key) < 1:
            raise ValueError(f"{key} must be a positive integer, got {getattr(config, key)!r}")
    if config.n_inner is not None and (not _is_integer(config.n_inner) or config.n_inner < 1):
        raise ValueError(f"n_inner must be a positive integer or null (4 * n_embd), got {config.n_inner!r}")
    if config.n_embd % config.n_head:
        raise ValueError(f"n_head must divide n_embd, got n_embd={config.n_embd} and n_head={config.n_head}")
    if config.activation_function != "swiglu":
        raise ValueError(f'activation_function must be "swiglu", got {config.activation_function!r}')
    if config.position_embedding_type != "alibi":
        raise ValueError(f'position_embedding_type must be "alibi", got {config.position_embedding_type!r}')
    for key in ("mup_width_scale", "mup_embeddings_scale", "mup_output_alpha"):
        if not _is_number(getattr(config, key)) or getattr(config, key) <= 0:
            raise ValueError(f"{key} must be a number above 0, got {getattr(config, key)!r}")
    _check_alibi_scaling(config.alibi_scaling)


def _check_alibi_scaling(scaling):
    allowed = 'null, {"type": "linear", "factor": number > 1} or {"type": "linear", "train_seq_len": integer > 1}'
    if scaling is None:
        return
    if not isinstance(scaling, dict) or len(scaling) != 2 or scaling.get("type") != "linear":
        raise ValueError(f"alibi_scaling must be {allowed}, got {scaling!r}")
    factor, train_seq_len = scaling.get("factor"), scaling.get("train_seq_len")
    if factor is None and train_seq_len is None:
        raise ValueError(f"alibi_scaling must be {allowed}, got {scaling!r}")
    if factor is not None and (not _is_number(factor) or factor <= 1):
        raise ValueError(f"factor of alibi_scaling must be a number above 1, got {factor!r}")
    if train_seq_len is not None and (not _is_integer(train_seq_len) or train_seq_len <= 1):
        raise ValueError(f"train_seq_len of alibi_scaling must be an integer above 1, got {train_seq_len!r}")


def _refuse_both(old_key, default=1.0, **new_values):
    for key, value in new_values.items():
        if value != default:
            raise ValueError(f"{old_key} is the old name of what {key} says: give one of them, not both")


def _refuse_misspelt(others):
    """A key that is nearly one of Jais would leave that one at its default."""
    known = [key for key in signature(JAISConfig.__init__).parameters if key not in ("self", "kwargs")]
    for key in others:
        if f"{key}_id" in known:  # bos_token and its like, which some tools write
            continue
        nearest = get_close_matches(key, known, n=1, cutoff=0.85)
        if nearest:
            raise ValueError(f"{key} is not a key of Jais: {nearest[0]} is")


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
