"""Every numerical tolerance of the test suite, in one place. They are never relaxed in passing: find the cause."""

# The reference model against the Model Zoo's, fp32 on the CPU.
MODELZOO_LOSS = 1e-5  # absolute, nats per token
MODELZOO_GRADIENT_RELATIVE = 1e-4  # norm of the difference over norm of the gradient, tensor by tensor
MODELZOO_LOGITS = 1e-4  # absolute; logits of these models reach several units
MODELZOO_LOSS_CURVE = 1e-3  # absolute, each of 20 steps
DRAWN_SPREAD = 0.02  # relative; statistical: two draws of over 10^5 values each
