"""Every numerical tolerance of the test suite, in one place. They are never relaxed in passing: find the cause."""

# The reference model against the Model Zoo's, fp32 on the CPU.
MODELZOO_LOSS = 1e-5  # absolute, nats per token
MODELZOO_GRADIENT_RELATIVE = 1e-4  # norm of the difference over norm of the gradient, tensor by tensor
MODELZOO_LOGITS = 1e-4  # absolute; logits of these models reach several units
MODELZOO_FIRST_LOSSES = 1e-5  # absolute, of the first 5 steps
MODELZOO_LOSS_CURVE = 1e-3  # absolute, each of 20 steps
DRAWN_SPREAD = 0.02  # relative; statistical: two draws of over 10^5 values each

# The Hugging Face code.
HF_LOGITS = 5e-6  # of the largest entry; fp32 against the formula in float64, or one path of a model against another
HF_HALF_LOGITS = {"float16": 0.01, "bfloat16": 0.06}  # absolute, for logits that reach 1; some roundings of the dtype
HF_GRADIENT = 1e-5  # absolute; gradients of the tiny models reach about 1
HF_LOSS = 1e-5  # absolute, nats per token

SAME_IN_FLOAT32 = 2e-5  # absolute; two orders of summing the same float32 terms, values of a few units
SAME_IN_BFLOAT16 = 2e-2  # two orders of rounding to 8 bits of mantissa (a unit in the last place is 2^-8)

PRODUCT_RELATIVE = 1e-6  # float32 against float64, norm of the difference over the norm; sums of up to 200 terms

# A release in transformers against the reference path of the checkpoint that it was made of.
RELEASE_LOGITS = 1e-4  # absolute, fp32; logits of these models reach several units

# The reference trainer.
OPTIMIZER_STEPS = 2e-6  # absolute, weights of order 1 after 30 steps of AdamW against Cerebras' own, float32
LEARNING_RATE_RELATIVE = 1e-6  # Cerebras computes it in float32
LOSS_ACROSS_PROCESSES = 1e-5  # absolute, nats per token, each of 6 steps; sums in another order
EXCHANGED_FIRST_LOSS = 1e-4  # absolute; the first loss after a checkpoint goes from one trainer to the other
DRAWN_EXTREME = 0.15  # relative; statistical: the largest of over 10^5 values

# The memory that a dry run states.
MEMORY_COUNTED = 0.001  # relative; activations counted one by one: rotary angles in 16 bits are not stated
MEMORY_PEAK = 0.1  # relative; of all that torch allocates in a run

# A bfloat16 release in transformers, computed in bfloat16 and in float32.
RELEASE_LOGITS_BFLOAT16 = 0.05  # of the largest logit; each of two layers rounds a dozen times to 8 bits of mantissa

# Against Cerebras' schedulers and optimizer state, both float32.
LEARNING_RATE_ABSOLUTE = 1e-9  # rates of order 1e-2; where a schedule passes through 0
SCHEDULER_STATE = 1e-12  # absolute, values of the state of order 1e-3 and above, and exact zeros
OPTIMIZER_STATE_RELATIVE = 1e-5  # moments after 30 steps, summed in another order
OPTIMIZER_STATE = 1e-7  # absolute, for moments near 0

# muP's constants from one form into another.
ROUNDING = 1e-15  # relative; a few roundings of float64
MUP_CONSTANT = 1e-11  # relative; initializers are written with twelve digits
SAME_DRAW = 1e-5  # relative, float32; one seed and spreads that differ by MUP_CONSTANT

# A release in transformers against the Model Zoo's own model on the checkpoint that its trainer wrote.
MODELZOO_RELEASE_LOGITS = 1e-5  # absolute, fp32; logits of these models reach some units

# llama.cpp on a float32 GGUF file of a release.
LLAMACPP_LOGITS = 1e-5  # of the largest logit; measured at most 3.8e-6, the sums' order
LLAMACPP_LOGITS_HALF_CACHE = 2e-3  # of the largest logit, keys and values kept in 16 bits; measured at most 5.8e-4
# What a GGUF file of float32 may differ in log-probabilities of the next token, and how near the two best must be for
# another of them to come first; what blocks of 8 bits may add to the bits per byte, relative.
LLAMACPP_LOG_PROBABILITY = 1e-2
LLAMACPP_TIE = 1e-3
Q8_0_BITS_PER_BYTE = 0.01

# vLLM against transformers without a cache, float32 on the CPU.
VLLM_LOG_PROBABILITIES = 1e-4  # absolute, of the likeliest tokens; logits of these models reach ten units
VLLM_TIE = 1e-4  # two best logits nearer than this may change places

# Both trainers over the tiny configs, 30 steps each, float32 on the CPU.
MODELZOO_NORM_RELATIVE = 1e-3  # norm of all gradients, at every step
MODELZOO_WEIGHTS_RELATIVE = 1e-4  # norm of the difference over the norm, tensor by tensor, at the end
CHECKPOINT_BYTES_RELATIVE = 0.05  # tiny models; HDF5 adds a few kilobytes to each of some 250 tensors

# The program of a CS system, run in float32 on a CPU.
PROGRAM_RELATIVE = 1e-5  # losses, and norm of the difference over the norm of each weight and state; 10 steps

# Ridge least squares in float32 against the formula in float64.
RIDGE_WEIGHT = 1e-5  # absolute; maps of entries up to 1
RIDGE_ERRORS_RELATIVE = 1e-4  # sums of squares over held-out rows

# Scores of options, float32 on the CPU: sums of log-probabilities over another order of the same terms.
SCORE = 1e-4  # absolute
SCORE_RELATIVE = 1e-6
