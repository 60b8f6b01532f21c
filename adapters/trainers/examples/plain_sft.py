"""Supervised fine-tuning in plain torch, for the `external` adapter; it imports nothing of the harness.

python -m adapters.trainers.examples.plain_sft --checkpoint IN --prompts FILE --config FILE --output OUT [--steps FILE]

The loss is the cross-entropy on the target tokens, averaged over all of a step's tokens, as in the adapter `sft`; the learning
rate is constant.
"""

# pyright: standard

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "prompts", "config", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--steps", type=Path)
    args = parser.parse_args()
    config = json.loads(args.config.read_text(encoding="utf-8"))
    torch.manual_seed(config["seed"])
    model: Any = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32).to(config["device"])
    for line in train(model, read_steps(args.prompts), config):
        print(line, flush=True)
        if args.steps:
            with args.steps.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
    model.save_pretrained(args.output)
    AutoTokenizer.from_pretrained(args.checkpoint).save_pretrained(args.output)


def read_steps(path: Path) -> list[list[dict[str, Any]]]:
    """Return the items of each step from a file of prompts."""
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [list(step) for _, step in groupby(items, key=lambda item: item["step"])]


def train(model: Any, steps: list[list[dict[str, Any]]], config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Update `model` once for each step's items and yield the step's log line; `config` is the stage's budget."""
    budget = config["optimizer"]
    settings = {key: budget[key] for key in ("lr", "betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    model.train()
    for items in steps:
        ids, labels = padded(items, config["max_new_tokens"])
        logits = model(input_ids=ids.to(model.device)).logits[:, :-1]
        loss = cross_entropy(
            logits.flatten(0, 1).float(), labels[:, 1:].flatten().to(model.device), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), budget["grad_clip"])
        optimizer.step()
        yield {"loss": loss.item(), "grad_norm": norm.item(), "lr": budget["lr"]}


def padded(items: list[dict[str, Any]], limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels (B, T), padded on the right; only target tokens, at most `limit`, have a label."""
    targets = [item["target_ids"][:limit] for item in items]
    width = max(len(item["prompt_ids"]) + len(target) for item, target in zip(items, targets, strict=True))
    ids, labels = torch.zeros(len(items), width, dtype=torch.long), torch.full((len(items), width), IGNORED)
    for row, (item, target) in enumerate(zip(items, targets, strict=True)):
        start, end = len(item["prompt_ids"]), len(item["prompt_ids"]) + len(target)
        ids[row, :end] = torch.tensor(item["prompt_ids"] + target)
        labels[row, start:end] = torch.tensor(target)
    return ids, labels


if __name__ == "__main__":
    main()
