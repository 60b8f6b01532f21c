"""Every causal architecture of the installed transformers, at small random weights: equal, or refused in one sentence.

`make architectures` prints a table. Log-probabilities are compared with dense logits, greedy answers of a batch with
`model.generate` on each prompt separately. A row is `equal`, `refused` (the harness says so before a run), `differs` (a fault:
the command fails), or `not built` (transformers cannot build it from a small configuration).
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.engines.engine import Sampling
from harness.engines.hf import HFEngine, drops_rows
from harness.errors import ModelError
from harness.lm.logprobs import StudentForward, check_head
from harness.lm.rollouts import Example, Rollout, make_batches

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "n_embd": 32, "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48,
    "decoder_ffn_dim": 48, "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "decoder_layers": 2, "n_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4, "num_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "n_positions": 128, "context_length": 128,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "state_size": 8,
    "attention_hidden_size": 32, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "embedding_size": 32, "word_embed_proj_dim": 32,
    "sliding_window": 16, "n_group": 1, "topk_group": 1, "rope_dim": 4, "rotary_dim": 4, "num_mem_blocks": 2,
    "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "time_step_rank": 4,
}  # fmt: skip
# Hybrid architectures whose default layers are of one kind, or whose sizes depend on each other.
OWN: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "num_hidden_layers": 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
    },
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "zamba2": {
        "num_hidden_layers": 2,
        "layers_block_type": ["mamba", "hybrid"],
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
}
# Latent attention: the rotary part's width is that of a head.
for latent in ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "minicpm3", "youtu"):
    OWN[latent] = {"head_dim": 8, "qk_rope_head_dim": 8, "num_key_value_heads": 4}
LARGEST = 20_000_000
BUDGET, STOPS = 12, (3, 7, 11, 20, 33)
PROMPTS = [[5, 9, 12, 40, 8], [6, 21], [17, 30, 31, 32, 33, 34, 35, 36], [50, 51, 52]]


@dataclass(frozen=True)
class Verdict:
    """What became of one architecture: log-probabilities and generation, each with a word and a reason."""

    name: str
    logprobs: str
    generation: str
    reason: str = ""


def architectures() -> list[str]:
    """Return the model types that transformers has a causal language model for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(name: str) -> Any:
    """Return a small random model of an architecture; raises transformers' own error where it cannot."""
    default: Any = transformers.AutoConfig.for_model(name).get_text_config(decoder=True)
    own: dict[str, Any] = {key: value for key, value in SMALL.items() if _settable(default, key)} | OWN.get(name, {})
    layers = own.get("num_hidden_layers", 2)
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    if kinds and "layer_types" not in own and _settable(default, "layer_types"):
        own["layer_types"] = (kinds * layers)[: max(layers, len(kinds))]
        own["num_hidden_layers"] = len(own["layer_types"])
    config: Any = type(default)(**own)
    config.is_decoder = True
    with torch.device("meta"):
        size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters in its small configuration")
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model


def _settable(config: Any, key: str) -> bool:
    return hasattr(config, key) and not isinstance(getattr(type(config), key, None), property)


def judge(name: str) -> Verdict:
    """Build an architecture and compare both halves of the harness with transformers' own."""
    try:
        model = build(name)
        model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits.sum().item()
        _stock_answer(model, PROMPTS[0])
    except Exception as error:
        return Verdict(name, "not built", "not built", _line(error))
    logprobs, reason = _compared(_same_logprobs, model)
    generation, further = _compared(_same_answers, model) if logprobs != "refused" else ("refused", "")
    return Verdict(name, logprobs, generation, reason or further or ("" if drops_rows(model) else "by model.generate"))


def _compared(compare: Any, model: Any) -> tuple[str, str]:
    try:
        reason = compare(model)
    except ModelError as error:
        return "refused", _line(error)
    except Exception as error:
        return "differs", _line(error)
    return ("differs", reason) if reason else ("equal", "")


@torch.no_grad()
def _same_logprobs(model: Any) -> str:
    check_head(model)
    rollouts = [Rollout(Example("a", "0", {}, p, []), [9, 4, 2], "stop") for p in PROMPTS]
    (batch,) = make_batches(rollouts, "token_mean", None)
    found = StudentForward(model)(batch, batch.targets[:, None]).chosen[:, 0]
    dense: list[torch.Tensor] = []
    for rollout in batch.rollouts:
        ids = rollout.prompt_and_response
        rows = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        start = len(rollout.example.prompt)
        dense += [rows[at - 1, ids[at]] for at in range(start, len(ids))]
    apart = float((found - torch.stack(dense)).abs().max())
    return "" if apart < 1e-3 else f"log-probabilities differ by {apart:.2g}"


@torch.no_grad()
def _same_answers(model: Any) -> str:
    found = HFEngine(model, None).generate(PROMPTS, Sampling(BUDGET, temperature=0, stop_ids=STOPS))
    for prompt, done in zip(PROMPTS, found, strict=True):
        if done.tokens != (made := _stock_answer(model, prompt)):
            return f"answers differ: {done.tokens} and {made}"
    return ""


@torch.no_grad()
def _stock_answer(model: Any, prompt: list[int]) -> list[int]:
    model.generation_config = transformers.GenerationConfig()  # a forced last token would not be the suite's
    options = {"do_sample": False, "max_new_tokens": BUDGET, "eos_token_id": list(STOPS), "pad_token_id": 0}
    return model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"


def main() -> None:
    """Print a row for each architecture, and fail where one differs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    verdicts = [judge(name) for name in sys.argv[1:] or architectures()]
    for each in verdicts:
        print(f"{each.name:28} {each.logprobs:10} {each.generation:10} {each.reason}", flush=True)
    for what, words in (
        ("log-probabilities", [v.logprobs for v in verdicts]),
        ("generation", [v.generation for v in verdicts]),
    ):
        print(f"{what}: {dict(Counter(words))}")
    sys.exit(any("differs" in (v.logprobs, v.generation) for v in verdicts))


if __name__ == "__main__":
    main()
