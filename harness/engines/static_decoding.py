"""Decode with tensors that never move: a step is a fixed list of kernels, which a GPU replays without Python (CUDA graphs).

Prompts are read as in `BatchDecoder`. Their keys and values are then copied into a cache of fixed length, and a step reads and
writes only the tensors of a `Layout`: it draws a token for each row and marks the rows that stop. When enough rows have
stopped, or the cache is full, the host makes a new layout with a new graph: with fewer rows, or a longer cache. On a CPU the
same steps run one by one; keys and values are then not copied for each token, nor for each query head. How often the host
looks and how much room a layout has depends on the device (`Pace`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harness.engines.decoding import BatchDecoder, completions_of, left_padded
from harness.engines.engine import Completion, Sampling
from harness.lm.packing import VARLEN

GROUPED = "harness_grouped"
ALIGNED = 16  # attention kernels need lengths that are multiples of this
WORTH_A_GRAPH = 8  # with fewer steps, capturing takes longer than it saves


@dataclass(frozen=True)
class Pace:
    """When the host looks at a layout's rows, and when it makes a new layout.

    - `looks`: steps between two looks.
    - `room`: new tokens that fit into the first layout; a later one has at least as many more columns, and `growth` times as
      many as the one before.
    - `share`: rows leave once this share of them, rounded up, holds all that run.
    """

    looks: int
    room: int
    growth: float
    share: float

    def rows(self, rows: int, running: int) -> int:
        """Return the rows of a layout, from the current number, that holds all rows that run."""
        while running <= (fewer := math.ceil(rows * self.share)) < rows:
            rows = fewer
        return rows

    def length(self, length: int) -> int:
        """Return the number of columns of a layout that follows one of `length` columns."""
        return _aligned(max(length + self.room, int(self.growth * length)))


# A look makes a GPU wait, and a new layout needs a new graph. A CPU waits for neither, but it attends to empty columns too.
PACES = {
    "cuda": Pace(looks=16, room=256, growth=2, share=0.5),
    "cpu": Pace(looks=1, room=ALIGNED, growth=1, share=0.75),
}


class FixedLayer(CacheLayerMixin):
    """Keys and values (B, heads, length, width) of one layer, in fixed tensors; a step writes one column."""

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.column = keys, values, column
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the tensors exist already."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new token's keys and values (B, heads, 1, width), and return those of all columns."""
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the keys and their offset, 0."""
        assert self.keys is not None
        return self.keys.shape[2], 0

    def get_seq_length(self) -> Any:
        """Return the number of filled columns, as a tensor (1,)."""
        return self.column

    def get_max_length(self) -> int:
        """Return the number of columns."""
        return self.get_mask_sizes(1)[0]


@dataclass
class Layout:
    """The tensors that a step of B rows reads and writes in place; a graph refers to them by address.

    - `ids`, `positions` (B, 1): the token to read next, and its position.
    - `bias` (B, 1, 1, length): added to attention scores; 0 at columns to attend to, else the smallest number.
    - `seeds`, `running`, `lengths` (B,): seed of each row's draws, whether it goes on, its number of tokens when it stops.
    - `tokens` (B, budget): the tokens drawn so far.
    - `step`, `column` (1,): the number of the last drawn token, from 0, and the cache's column for it.
    """

    ids: Tensor
    positions: Tensor
    bias: Tensor
    seeds: Tensor
    running: Tensor
    lengths: Tensor
    tokens: Tensor
    step: Tensor
    column: Tensor
    cache: Cache

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors except the cache's, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cache"}

    def select(self, rows: Tensor, length: int) -> Layout:
        """Return a new layout of some rows, with a cache of `length` columns."""
        single = {name: value.clone() for name, value in self.tensors.items() if name in ("step", "column")}
        by_row = {name: value[rows] for name, value in self.tensors.items() if name not in (*single, "bias")}
        bias = self.bias.new_full((len(rows), 1, 1, length), torch.finfo(self.bias.dtype).min)
        filled = min(length, self.bias.shape[-1])
        bias[..., :filled] = self.bias[rows][..., :filled]
        own: list[Any] = self.cache.layers
        layers: list[Any] = [
            FixedLayer(_longer(layer.keys[rows], length), _longer(layer.values[rows], length), single["column"])
            for layer in own
        ]
        return Layout(**by_row, **single, bias=bias, cache=Cache(layers=layers))


class StaticDecoder(BatchDecoder):
    """Decodes one batch like `BatchDecoder`, with fixed tensors."""

    def run(self, prompts: list[list[int]], seeds: Tensor) -> list[Completion]:
        """Decode until every row has stopped or used its budget; `seeds` (rows,) determine each row's draws."""
        budget, count, pace = self.sampling.max_new_tokens, len(prompts), PACES[self.device.type]
        layout = self._first_layout(prompts, seeds)
        width = layout.bias.shape[-1]
        full = _aligned(width + budget)
        alive = torch.arange(count, device=self.device)
        tokens, lengths, running = layout.tokens.clone(), layout.lengths.clone(), layout.running.clone()
        done, rows, length = 1, count, min(full, _aligned(width + pace.room))
        layout = layout.select(alive, length)
        self._look_for_strings(layout, 0, 1)
        with grouped_attention(self.model):
            advance = self._prepared(layout, budget - done)
            while done < budget and (left := int(layout.running.sum())):
                size = pace.rows(rows, left)
                if size < rows or width + done > length:
                    tokens[alive], lengths[alive], running[alive] = layout.tokens, layout.lengths, layout.running
                    kept = layout.running.logical_not().long().argsort(stable=True)[:size]
                    length = length if width + done <= length else min(full, pace.length(length))
                    layout, alive, rows = layout.select(kept, length), alive[kept], size
                    advance = self._prepared(layout, budget - done)
                # The last drawn token is not in the cache yet, so there is room for `length - width - done + 1` steps.
                more = min(pace.looks, budget - done, length - width - done + 1)
                for _ in range(more):
                    advance()
                self._look_for_strings(layout, done, done + more)
                done += more
        tokens[alive], lengths[alive], running[alive] = layout.tokens, layout.lengths, layout.running
        return completions_of(tokens, lengths, ~running)

    def _first_layout(self, prompts: list[list[int]], seeds: Tensor) -> Layout:
        """Read the prompts with a growing cache, draw the first tokens, and return the tensors of a step."""
        logits, mask, positions, cache = self._read(prompts)
        drawn = self._draw(logits, seeds, 0)
        budget, count, width = self.sampling.max_new_tokens, *mask.shape
        tokens = torch.zeros(count, budget, dtype=torch.long, device=self.device)
        tokens[:, 0] = drawn
        stopped = self._stops_at_id(drawn)
        lengths = torch.where(stopped, 1, torch.full_like(drawn, budget))
        bias = torch.zeros(mask.shape, dtype=self.model.dtype, device=self.device)
        bias = bias.masked_fill(mask == 0, torch.finfo(self.model.dtype).min)[:, None, None]
        at = torch.tensor([width], device=self.device)
        return Layout(
            drawn[:, None],
            positions[:, -1:] + 1,
            bias,
            seeds,
            ~stopped,
            lengths,
            tokens,
            torch.zeros_like(at),
            at,
            cache,
        )

    def _step(self, layout: Layout) -> None:
        """Read the last tokens, draw the next ones, and mark the rows that stop, with kernels on fixed tensors only."""
        layout.bias.index_fill_(3, layout.column, 0.0)
        output = self.model(
            input_ids=layout.ids,
            attention_mask=layout.bias,
            position_ids=layout.positions,
            past_key_values=layout.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        layout.step.add_(1)
        drawn = self._draw(output.logits[:, -1], layout.seeds, layout.step)
        layout.tokens.index_copy_(1, layout.step, drawn[:, None])
        stopped = layout.running & self._stops_at_id(drawn)
        layout.lengths.copy_(torch.where(stopped, layout.step + 1, layout.lengths))
        layout.running.logical_and_(~stopped)
        layout.ids.copy_(drawn[:, None])
        layout.positions.add_(1)
        layout.column.add_(1)

    def _stops_at_id(self, drawn: Tensor) -> Tensor:
        return (drawn[:, None] == self.stop_ids).any(-1)

    def _look_for_strings(self, layout: Layout, first: int, end: int) -> None:
        """Mark the rows whose text ends with a stop string after one of the steps `first` to `end` - 1, at the earliest."""
        for step in range(first, end) if self.stop_strings is not None else ():
            assert self.stop_strings is not None
            hit = self.stop_strings(layout.tokens[:, : step + 1], None)  # pyright: ignore[reportArgumentType]
            hit = hit.to(self.device) & (layout.lengths > step)
            layout.lengths.copy_(torch.where(hit, step + 1, layout.lengths))
            layout.running.logical_and_(~hit)

    def _prepared(self, layout: Layout, steps: int) -> Callable[[], None]:
        step = partial(self._step, layout)
        return capture(step, layout) if self.device.type == "cuda" and steps >= WORTH_A_GRAPH else step


def capture(step: Callable[[], None], layout: Layout) -> Callable[[], None]:
    """Return the replay of a graph of a step; if it cannot be captured, warn and return the step itself."""
    before = {name: value.clone() for name, value in layout.tensors.items()}
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # in their first call libraries choose kernels and allocate memory, which a graph cannot contain
    torch.cuda.current_stream().wait_stream(side)
    for name, value in before.items():
        layout.tensors[name].copy_(value)
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"a decoding step cannot be captured as a CUDA graph ({reason}); decoding goes on without one, which is slower",
            stacklevel=2,
        )
        return step
    return graph.replay


def has_fixed_cache(model: Any, length: int) -> bool:
    """Return whether a model's cache of `length` tokens can be fixed tensors of keys and values, two for each layer.

    A sliding window that is at least as long as the text has no effect.
    """
    if model.config._attn_implementation not in ("sdpa", "eager", VARLEN):
        return False
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= length)
        for layer in DynamicCache(config=model.config).layers
    )


@torch.no_grad()
def static_difference(model: Any) -> str | None:
    """Return why fixed tensors do not give a model's own logits after two short padded prompts; None if they do."""
    rows = len(model.get_output_embeddings().weight)
    prompts = [[number % rows for number in prompt] for prompt in ([3, 5, 7, 11], [2, 9])]
    sampling = Sampling(4, temperature=0)
    seeds = torch.zeros(2, dtype=torch.long, device=model.device)
    own, fixed = BatchDecoder(model, None, sampling), StaticDecoder(model, None, sampling)
    try:
        ids, mask = left_padded(prompts, model.device)
        positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), DynamicCache(config=model.config)
        drawn = own._next(ids, mask, positions, cache).argmax(-1)
        expected = own._next(drawn[:, None], torch.cat([mask, mask[:, -1:]], dim=1), positions[:, -1:] + 1, cache)
        layout = fixed._first_layout(prompts, seeds).select(torch.arange(2, device=model.device), ALIGNED)
        layout.bias.index_fill_(3, layout.column, 0.0)
        with grouped_attention(model):
            found = fixed._next(layout.ids, layout.bias, layout.positions, layout.cache)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    apart, largest = float((found - expected).abs().max()), float(expected.abs().max())
    allowed = max(1e-4, 8 * torch.finfo(model.dtype).eps) * largest
    return None if apart <= allowed else f"its logits differ by {apart:.2g}, expected at most {allowed:.2g}"


@contextmanager
def grouped_attention(model: Any) -> Generator[None]:
    """Let a model with torch's attention attend without repeating keys and values for each query head, in this block."""
    before = model.config._attn_implementation
    if before in ("sdpa", VARLEN):
        AttentionInterface.register(GROUPED, _attend)
        model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Return the attention (B, 1, heads, width) of one new token; heads that share keys become queries of one head."""
    batch, heads, count, _ = query.shape
    groups = key.shape[1]
    if count != 1 or groups == heads or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    grouped = query.reshape(batch, groups, heads // groups, -1)
    found = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return found.reshape(batch, 1, heads, -1), None


def _longer(states: Tensor, length: int) -> Tensor:
    """Return keys or values (B, heads, length, width) extended with zeros."""
    batch, heads, filled, width = states.shape
    longer = states.new_zeros(batch, heads, length, width)
    longer[:, :, :filled] = states
    return longer


def _aligned(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED
