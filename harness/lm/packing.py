"""Sequences packed into one row without padding: attention that separates them, and a check of the models that support it.

transformers passes the sequences' boundaries to the attention function (`cu_seq_lens_q`). Here that function is torch's
variable-length flash attention on a GPU in half precision, and otherwise one attention call per sequence. Both give the result
of each sequence alone. Without boundaries it is transformers' sdpa attention, so the same model can also generate.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

VARLEN = "harness_varlen"
KNOWS_BOUNDARIES = (VARLEN, "flash_attention_2", "flash_attention_3", "flash_attention_4")
# Arguments of attention functions that change the result in a way that is not implemented here.
UNKNOWN = ("softcap", "s_aux", "position_bias")


@contextmanager
def packing(models: Iterable[Any], enabled: bool, warn: Callable[[str], None]) -> Generator[None]:
    """Let models take packed batches in this block; one that cannot stays as it is, and `warn` gets the reason."""
    before: list[tuple[Any, str]] = []
    try:
        for model in models if enabled else ():
            own = model.config._attn_implementation
            if own in KNOWS_BOUNDARIES:
                continue
            before.append((model, own))
            if (reason := _allow(model)) is not None:
                model.set_attn_implementation(own)
                warn(f"{type(model).__name__} does not support packed sequences ({reason}); its batches are padded")
        yield
    finally:
        for model, own in before:
            model.set_attn_implementation(own)


def packs(model: Any) -> bool:
    """Return whether a model's attention separates the sequences of a packed batch."""
    return model.config._attn_implementation in KNOWS_BOUNDARIES


def packed_inputs(model: Any, lengths: Iterable[int], device: torch.device) -> dict[str, Any]:
    """Return a decoder's inputs besides the ids (1, T), for packed sequences of these lengths."""
    lengths = list(lengths)
    edges = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    inputs = {
        "position_ids": positions,
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), edges),
        **{name: max(lengths) for name in ("max_length_q", "max_length_k")},
    }
    if model.config._attn_implementation == VARLEN:
        # transformers uses a mask of four dimensions as it is; without one it would build (T, T), which nothing reads.
        inputs["attention_mask"] = positions[None, None]
    return inputs


def varlen_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Return the attention (1, T, heads, width) of packed sequences; query, key and value are (1, heads, T, width).

    It has the signature of transformers' attention functions. Raises `ValueError` for an option in UNKNOWN.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    edges = options.get("cu_seq_lens_q")
    if edges is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if strange := [name for name in UNKNOWN if options.get(name) is not None]:
        raise ValueError(f"its attention has {strange[0]}")
    window, dropout, scale = options.get("sliding_window"), options.get("dropout", 0.0), options.get("scaling")
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        query, key, value = (states.to(torch.get_autocast_dtype("cuda")) for states in (query, key, value))
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout and _has_flash(query.device):
        return _flash(query, key, value, edges, options["max_length_q"], window, scale), None
    parts: list[Tensor] = []
    for start, end in pairwise(edges.tolist()):
        q, k, v = (states[:, :, start:end] for states in (query, key, value))
        band = _band(end - start, window, query.device)
        parts.append(sdpa_attention_forward(module, q, k, v, band, dropout=dropout, scaling=scale, is_causal=True)[0])
    return torch.cat(parts, dim=1), None


def _has_flash(device: torch.device) -> bool:
    """Return whether a GPU is of Ampere's generation or newer, which torch's kernel for packed sequences needs."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, edges: Tensor, longest: int, window: int | None, scale: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    left = -1 if window is None else window - 1
    grouped = query.shape[1] != key.shape[1]
    found: Any = varlen_attn(
        q, k, v, edges, edges, longest, longest, scale=scale, window_size=(left, 0), enable_gqa=grouped
    )
    return found[None]


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask (1, 1, length, length) of causal attention to the last `window` tokens; None if these are all."""
    if window is None or length <= window:
        return None
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((back >= 0) & (back < window))[None, None]


@torch.no_grad()
def _allow(model: Any) -> str | None:
    """Switch a model to `varlen_attention`; return why packed and single sequences differ in hidden states, None if not."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, sdpa_mask)
    rows = len(model.get_output_embeddings().weight)
    device, lengths = model.device, (5, 1, 3)
    ids = (torch.arange(sum(lengths), device=device) * 7 % rows)[None]
    decoder, training = model.get_decoder(), model.training
    model.eval()
    try:
        alone = [decoder(input_ids=part, use_cache=False).last_hidden_state[0] for part in ids.split(lengths, dim=1)]
        model.set_attn_implementation(VARLEN)
        inputs = packed_inputs(model, lengths, device)
        together = decoder(input_ids=ids, use_cache=False, **inputs).last_hidden_state[0]
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        model.train(training)
    expected = torch.cat(alone)
    apart = float((together - expected).abs().max())
    allowed = max(1e-4, 8 * torch.finfo(model.dtype).eps) * float(expected.abs().max())
    return (
        None if apart <= allowed else f"packed, its hidden states differ by {apart:.2g}, expected at most {allowed:.2g}"
    )
