"""What the Cerebras software raises while it lowers becomes one line with the module of the model and the config key.

Contract: each message is one that cerebras_pytorch 2.10 gives; addresses, temporary files and advice about other
compilers do not reach the user; the key is the one that decides what is in the module.
"""

import pytest

from cerebras_jais.modelzoo.lower.failure import problem_of

TRAINER = {"init": {"model": {"name": "jais_family", "nonlinearity": "swiglu"}}}
FFN = "model.transformer_decoder.layers.0.ffn"
TRACE = ' Check graph dump in "ltc_unsupported.graph" Stack Trace: 0# 0x00007F15B2281FFA in /x/cerebras_pytorch_lib.so'


def failure(message, module=None, sources=(), location=(), kind="RuntimeError", for_users=False):
    return {
        "kind": kind,
        "for_users": for_users,
        "message": message,
        "module": module,
        "sources": list(sources),
        "location": list(location),
    }


@pytest.mark.parametrize(
    ("found", "keys", "words"),
    [
        (
            failure(f"The Cerebras backend does not yet support `aten::bessel(Tensor self) -> Tensor`{TRACE}", FFN),
            ("init", "model", "nonlinearity"),
            f"the module {FFN} cannot be lowered: CS systems have no operation aten::bessel; write it in operations",
        ),
        (
            failure(f"The Cerebras backend does not yet support `aten::_local_scalar_dense(Tensor){TRACE}", FFN),
            ("init", "model", "nonlinearity"),
            "the value of a tensor is wanted while the step is traced",
        ),
        (
            failure("Trying to materialize a tensor outside of a step closure. All PyTorch code", "model.lm_head"),
            ("init", "model", "vocab_size"),
            "the value of a tensor is wanted while the step is traced",
        ),
        (
            failure(
                "aten::nonzero: attempted to run this operator with Meta tensors. You may have run into this message",
                "model.transformer_decoder.layers.3.self_attn",
                kind="NotImplementedError",
            ),
            ("init", "model", "num_heads"),
            "a shape depends on values, and the shapes of a step are fixed",
        ),
        (
            failure("The size of tensor a (128) must match the size of tensor b (127)", "loss_fn"),
            ("init", "model", "loss_scaling"),
            "RuntimeError: The size of tensor a (128) must match the size of tensor b (127)",
        ),
        (
            failure("The number of CS devices (9) must be less than or equal to the model batch size (8)."),
            ("init", "backend", "cluster_config", "num_csx"),
            "a step has fewer samples than there are CS systems",
        ),
        (
            failure("No *.h5 files found", sources=["/x/cerebras/modelzoo/data/common/readers.py"], kind="ValueError"),
            ("fit", "train_dataloader"),
            "ValueError: No *.h5 files found",
        ),
        (
            failure("betas", sources=["/torch/x.py", "/x/cerebras/pytorch/optim/AdamW.py"]),
            ("init", "optimizer"),
            "RuntimeError: betas",
        ),
        (
            failure("Input should be 'a'", location=("init", "model", "jais_family", "nonlinearity")),
            ("init", "model", "nonlinearity"),
            "the Model Zoo says: Input should be 'a'",
        ),
        (failure("torch-cirh-opt is not on PATH", for_users=True), (), "torch-cirh-opt is not on PATH"),
        (failure("", kind="MemoryError"), (), "not enough memory to lower it"),
        (failure("x.so: failed to map segment from shared object", kind="ImportError"), (), "not enough memory"),
        (failure("something"), ("init", "model", "name"), "cannot be lowered: RuntimeError: something"),
    ],
)
def test_a_failure_is_said_at_the_key_that_decides_it(found, keys, words):
    problem = problem_of(found, TRAINER)
    assert problem.keys == keys
    assert words in problem.message
    for noise in ("Stack Trace", "0x0", "ltc_unsupported", "You may have"):
        assert noise not in problem.message


def test_what_torch_cirh_opt_prints_is_the_reason_that_it_gives():
    message = "torch-to-cirh lowering failed: To re-run: torch-cirh-opt -o step.mlir"
    log = "loading\n<stdin>:3:4: error: 'torch.aten.x' has no lowering\nTraceback"
    assert problem_of(failure(message), TRAINER, log).message.endswith("error: 'torch.aten.x' has no lowering")
    assert problem_of(failure(message), TRAINER).message.endswith("it said nothing")


def test_a_long_message_is_cut():
    assert len(problem_of(failure("x" * 10_000), TRAINER).message) < 400
