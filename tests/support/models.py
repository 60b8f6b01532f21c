"""Small models, suites and contexts that the core's tests share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from harness.adapter import StageContext
from harness.config.models import Chat
from harness.config.training import Training
from harness.engines.engine import Completion, Engine, Sampling
from harness.lm.chat import Renderer
from harness.lm.logprobs import StudentForward
from harness.lm.rollouts import Batch, Example, Rollout
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer
from harness.teachers.local import LocalTeacher
from harness.teachers.teacher import Teacher

VOCABULARY = 24
STOP = 2


def qwen3(
    vocabulary: int = VOCABULARY,
    *,
    seed: int = 0,
    tie: bool = True,
    dtype: torch.dtype = torch.float64,
    layers: int = 2,
) -> Any:
    """Return a random Qwen3 model with peaked predictions; in float64 its norms are float64 too, unlike the library's."""
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128, tie_word_embeddings=tie, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen3ForCausalLM(config)
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        _with_exact_norms(model)
    return model


def byte_renderer(chat: Chat | None = None) -> Renderer:
    """Return a renderer whose tokens are bytes and ChatML's markers."""
    return Renderer(byte_tokenizer(), chat or Chat(template="chatml"))


def example(prompt: Sequence[int], target: Sequence[int] = (STOP,), name: str = "item") -> Example:
    """Return a training item from its ids."""
    return Example("fake", name, {}, list(prompt), list(target))


def rollout(prompt: Sequence[int], response: Sequence[int]) -> Rollout:
    """Return a finished rollout from its ids."""
    return Rollout(example(prompt), list(response), "stop")


def dense_logprobs(model: Any, ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Return log-probabilities (T, V) of one sequence from the model's own full logits, with autograd."""
    logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return (logits / temperature).log_softmax(-1)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's gradients by parameter name, zeros where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in module.named_parameters()
    }


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare all gradients, relative to each parameter's largest expected entry."""
    assert found.keys() == expected.keys()
    assert any(value.abs().max() > 1e-4 for value in expected.values()), "the expected gradient is zero: no test"
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-3)
        assert float((found[name] - value).abs().max()) <= tolerance * scale, name


class FakeTokenizer:
    """A vocabulary by numbers, for teachers that compare vocabularies."""

    def __init__(self, size: int = VOCABULARY) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(self.size)}


def local_teacher(seed: int = 1, vocabulary: int = VOCABULARY) -> LocalTeacher:
    """Return a teacher over the numbers' vocabulary."""
    return LocalTeacher(qwen3(vocabulary, seed=seed), FakeTokenizer(vocabulary), FakeTokenizer(vocabulary))


@dataclass
class ScriptedEngine:
    """Answers each prompt with the responses it was given, in turn, and remembers what it was asked."""

    responses: list[list[int]]
    asked: list[Sampling] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return the next responses; one that does not end with the stop token was cut."""
        self.asked.append(sampling)
        start = len(self.prompts)
        self.prompts += prompts
        chosen = [self.responses[i % len(self.responses)] for i in range(start, len(self.prompts))]
        return [Completion(list(r), "stop" if r[-1] in sampling.stop_ids else "length") for r in chosen]


@dataclass
class FakeTask:
    """A task that only has a name."""

    name: str = "fake"


@dataclass
class FakeRenderer:
    """A renderer that only knows where answers end."""

    stop_ids: tuple[int, ...] = (STOP,)


def context(
    model: Any,
    engine: Engine,
    examples: list[Example],
    training: dict[str, Any] | None = None,
    teacher: Teacher | None = None,
    log: list[dict[str, Any]] | None = None,
    seed: int = 5,
    reference: LocalTeacher | None = None,
    teacher_engine: Engine | None = None,
) -> StageContext:
    """Return a stage over token numbers; `log` collects the step log."""
    budget = {"steps": 1, "prompts_per_step": len(examples), "max_new_tokens": 8, **(training or {})}
    lines: list[dict[str, Any]] = [] if log is None else log
    renderer: Any = FakeRenderer()
    task: Any = FakeTask()
    return StageContext(
        student=StudentForward(model),
        teacher=teacher,
        reference=reference,
        engine=engine,
        teacher_engine=teacher_engine,
        renderer=renderer,
        tasks={"fake": task},
        examples=examples,
        training=Training.model_validate(budget),
        seed=seed,
        device="cpu",
        folder=Path("nowhere"),
        log=lines.append,
        warn=lambda _: None,
    )


def response_tokens(batches: Sequence[Batch]) -> int:
    """Return how many response tokens batches hold."""
    return sum(len(batch.targets) for batch in batches)


# Rendering all 4000 training items of a task takes longer than a micro run's training.
SEEN = {"tiny_weather": 200, "tiny_currency": 200}


def micro_suite() -> dict[str, Any]:
    """Return a suite that runs in seconds: models of some ten thousand parameters, two steps a stage, four items."""
    student = {
        "kind": "scratch",
        "architecture": {
            "hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16,
            "context": 128,
        },
        "tokenizer": {"vocab_size": 300, "tasks": ["tiny_weather", "tiny_currency"], "items_per_task": 100},
        "warmup": {
            "mixture": {"tiny_weather": 1, "tiny_currency": 1}, "strengths": {"weak": {"steps": 60, "items": SEEN}},
            "batch_size": 16, "lr": 1e-2,
        },
        "strength": "weak",
    }  # fmt: skip
    teacher = {
        **student,
        "warmup": {**student["warmup"], "strengths": {"good": {"steps": 90, "items": SEEN}}},
        "strength": "good",
        "seed": 1000,
    }
    return {
        "name": "micro",
        "student": student,
        "teacher": teacher,
        "stages": ["tiny_weather", "tiny_currency"],
        "probes": ["tiny_reminder"],
        "training": {
            "steps": 2,
            "train_items": 100,
            "prompts_per_step": 4,
            "max_new_tokens": 24,
            "optimizer": {"lr": 1e-3},
        },
        "adapters": {"opd": {}, "aopd": {}, "sft": {}, "none": {}},
        "evaluation": {"limit": 4, "batch_size": 8, "decoding": {"max_gen_toks": 24}},
        "device": "cpu",
        "threads": 1,
    }


def learning_suite() -> dict[str, Any]:
    """The micro suite, larger and longer warmed up, so that some answers are right: two profiles, one of four answers."""
    suite = micro_suite()
    for side, strength, steps in (("student", "weak", 300), ("teacher", "good", 500)):
        warmup = suite[side]["warmup"] | {"strengths": {strength: {"steps": steps}}, "lr": 5e-3}
        architecture = suite[side]["architecture"] | {"hidden_size": 64, "intermediate_size": 128}
        suite[side] |= {"warmup": warmup, "architecture": architecture}
    suite["training"] |= {"steps": 6, "prompts_per_step": 16, "max_new_tokens": 40, "optimizer": {"lr": 2e-3}}
    greedy = {"temperature": 0, "max_gen_toks": 40}
    sampled = {"n": 4, "temperature": 0.8, "max_gen_toks": 40, "pass_at": [1, 4]}
    profiles = {"greedy": greedy, "sampled": sampled}
    return suite | {"evaluation": {"limit": 7, "batch_size": 32, "drift": {"items": 4}, "profiles": profiles}}


def write_yaml(path: Path, value: Any) -> Path:
    """Write a YAML file, with its folder, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


def _with_exact_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child).__name__ == "Qwen3RMSNorm":
            weight: Any = child.weight
            norm = nn.RMSNorm(weight.shape[0], eps=1e-6, dtype=torch.float64)
            norm.weight.data.copy_(weight)
            setattr(module, name, norm)
        else:
            _with_exact_norms(child)


TASK_FILE = {
    "output_type": "generate_until",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "prompt",
    "doc_to_target": "target",
    "target_delimiter": "",
    "num_fewshot": 0,
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8},
    "metric_list": [
        {"metric": "strict", "aggregation": "mean", "higher_is_better": True},
        {"metric": "parsed", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0, "harness": {"metric": "strict", "training_target": "target"}},
}
GRADER = 'return {"strict": float(results[0].strip() == doc["target"]), "parsed": float("?" not in results[0])}'
DOCS = {
    "train": [{"prompt": f"say {i}", "target": str(i)} for i in range(20, 40)],
    "test": [{"prompt": f"say {i}", "target": str(i)} for i in range(6)],
}


def write_task(
    folder: Path,
    name: str = "made_up",
    docs: dict[str, list[dict[str, Any]]] | None = None,
    grader: str | None = GRADER,
    **changes: Any,
) -> Path:
    """Write a task file, and its records and grader next to it; a change to None drops a key. Return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    # Records lie in a file of their own, so that a grader's source says nothing about them.
    (folder / f"{name}.json").write_text(json.dumps(docs or DOCS), encoding="utf-8")
    code = [
        "import json\nfrom pathlib import Path\nfrom datasets import Dataset, DatasetDict",
        f"def records(**_):\n    docs = json.loads((Path(__file__).parent / '{name}.json').read_text())",
        "    return DatasetDict({split: Dataset.from_list(rows) for split, rows in docs.items()})",
        f"def grade(doc, results):\n    {grader or 'raise NotImplementedError'}",
    ]
    (folder / f"{name}_code.py").write_text("\n".join(code), encoding="utf-8")
    # Python takes bytecode of the same second and size for that of this file.
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    config = {k: v for k, v in {"task": name, **TASK_FILE, **changes}.items() if v is not None}
    functions = [f"custom_dataset: !function {name}_code.records"]
    functions += [f"process_results: !function {name}_code.grade"] if grader else []
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([yaml.safe_dump(config, sort_keys=False), *functions, ""]), encoding="utf-8")
    return path
