"""Output layers: logits scaled, capped and shifted as each architecture does it, in every precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from harness.errors import ModelError
from harness.lm.logprobs import Head, StudentForward, check_head, head_of, selected_logprobs
from harness.lm.rollouts import make_batches
from tests.support.dense import SEQUENCES, dense, inputs
from tests.support.models import gradients, qwen3

SHAPE = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {"num_key_value_heads": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_scaled_capped_and_shifted_as_each_architecture_does(family: str):
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES[family]})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    head_bias = getattr(model.get_output_embeddings(), "bias", None)
    if head_bias is not None:
        nn.init.normal_(head_bias)
    (batch,) = make_batches(SEQUENCES, "sequence_mean", None)
    with torch.no_grad():
        found = StudentForward(model)(batch, torch.arange(24).expand(len(batch.targets), -1)).chosen
        expected = model(input_ids=batch.input_ids).logits.log_softmax(-1)[batch.predicts]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


STRANGE: dict[str, dict[str, Any]] = {
    "RecurrentGemma": {
        "vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 1, "lru_width": 32, "logits_soft_cap": 1.0, "attention_window_size": 16,
    },
    "FalconH1": {
        "vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 8, "mamba_chunk_size": 16, "lm_head_multiplier": 0.2, "head_dim": 16, "initializer_range": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", STRANGE)
def test_an_architecture_that_makes_its_logits_otherwise_is_refused(family: str):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**STRANGE[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    if family == "RecurrentGemma":
        model.get_input_embeddings().weight.data.mul_(20)
    with pytest.raises(ModelError, match=rf"{family}ForCausalLM .*logits"):
        check_head(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_known_architectures_are_taken_in_every_precision(family: str, dtype: torch.dtype):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES[family]})
    check_head(getattr(transformers, f"{family}ForCausalLM")(config).eval().to(dtype))


def test_a_model_without_an_output_layer_is_refused():
    model = transformers.Qwen3Model(qwen3().config)
    with pytest.raises(ModelError, match=r"Qwen3Model .*no linear output layer"):
        head_of(model)


def test_under_autocast_the_head_still_works_in_its_weights_precision():
    hidden, head, ids, above = inputs("plain")
    single = Head(head.weight.detach().float().requires_grad_())
    narrow = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = selected_logprobs(narrow, single, ids).chosen
    expected = dense(narrow.detach().double(), Head(single.weight.detach().double()), ids)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    gradient, weight = torch.autograd.grad((found * above).sum(), [narrow, single.weight])
    assert (gradient.dtype, weight.dtype) == (torch.bfloat16, torch.float32)
    exact = dense(hidden.detach().requires_grad_(), head, ids)
    (reference,) = torch.autograd.grad((exact * above).sum(), head.weight)
    assert float((weight.double() - reference).norm() / reference.norm()) < 0.02


def test_a_student_under_autocast_is_close_to_itself_without():
    model = qwen3(dtype=torch.float32)
    (batch,) = make_batches(SEQUENCES, "sequence_mean", None)
    ids = batch.targets[:, None]

    def run(autocast: bool) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            chosen = StudentForward(model)(batch, ids).chosen
        (chosen[:, 0] * batch.weights).sum().backward()
        return chosen.detach(), torch.cat([g.flatten() for g in gradients(model).values()])

    (chosen, found), (exact, expected) = run(True), run(False)
    assert chosen.dtype == found.dtype == torch.float32
    assert not torch.equal(chosen, exact)
    torch.testing.assert_close(chosen, exact, rtol=0, atol=0.2)
    assert float(nn_cosine(found, expected)) > 0.99


def nn_cosine(one: Tensor, other: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(one, other, dim=0)
