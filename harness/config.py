"""What a suite file may say: frozen pydantic models with the paper's settings as defaults. Imports no torch.

A suite names a student, a teacher, the ordered stages, the retention probes (tasks that are never trained), the
adapters under test and the budgets. Unknown keys are refused. `harness.suites` reads the files.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

JOINT = "joint"  # the order that trains all tasks in one stage
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of what becomes part of a folder's name


class Strict(BaseModel):
    """Base of all configuration: immutable, and a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Chat(Strict):
    """How a conversation becomes text and where an answer ends; named once for training, teacher and evaluation."""

    template: str | None = Field(default=None, description="`chatml`, or a Jinja file; null keeps the tokenizer's own")
    stop: tuple[str, ...] = Field(
        default=(), description="tokens that end an answer; empty takes the tokenizer's eos token"
    )
    enable_thinking: bool | None = Field(default=None, description="passed to the template where it knows the flag")


class Architecture(Strict):
    """Shape of a model built from scratch (Qwen3)."""

    hidden_size: int = Field(default=128, gt=0)
    intermediate_size: int = Field(default=384, gt=0)
    layers: int = Field(default=3, gt=0)
    heads: int = Field(default=4, gt=0)
    kv_heads: int = Field(default=2, gt=0)
    head_dim: int = Field(default=32, gt=0)
    context: int = Field(default=256, gt=0, description="longest sequence in tokens, prompt and answer together")
    tie_embeddings: bool = True


class TokenizerRecipe(Strict):
    """A byte-level BPE trained on the rendered training text of some tasks; digits stay single."""

    vocab_size: int = Field(default=384, gt=260)
    spaces: Literal["own", "leading"] = Field(
        default="leading",
        description="`own` makes a space a token, so that a copied word keeps its ids; `leading` is shorter",
    )
    tasks: tuple[str, ...] = Field(min_length=1)
    items_per_task: int = Field(default=2000, gt=0)


class Strength(Strict):
    """How far a warm-up goes: optimiser steps, and how many training items of a task it sees (all where not named)."""

    steps: int = Field(gt=0)
    items: dict[str, int] = {}


class Warmup(Strict):
    """Supervised training that takes random weights to a named strength."""

    mixture: dict[str, float] = Field(description="task to its share of each batch", min_length=1)
    strengths: dict[str, Strength] = Field(min_length=1)
    batch_size: int = Field(default=64, gt=0)
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    autocast: Literal["bfloat16"] | None = None

    @model_validator(mode="after")
    def _items_are_of_the_mixture(self) -> Warmup:
        for name, strength in self.strengths.items():
            if unknown := sorted(set(strength.items) - set(self.mixture)):
                raise ValueError(f"strength {name!r} limits items of {', '.join(unknown)}, which the mixture lacks")
        return self


class Pretrained(Strict):
    """A causal language model by folder or hub id, base models included."""

    kind: Literal["pretrained"]
    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat: Chat = Chat()


class Scratch(Strict):
    """A small model built here: architecture, tokenizer and warm-up make it fully reproducible."""

    kind: Literal["scratch"]
    architecture: Architecture = Architecture()
    tokenizer: TokenizerRecipe
    warmup: Warmup
    strength: str
    seed: int | None = Field(
        default=None, description="null takes the run's seed, so that seeds differ in their start too"
    )
    dtype: Literal["float32"] = "float32"
    chat: Chat = Chat(template="chatml")

    @model_validator(mode="after")
    def _strength_is_named(self) -> Scratch:
        if self.strength not in self.warmup.strengths:
            raise ValueError(f"strength {self.strength!r} is not one of {', '.join(self.warmup.strengths)}")
        return self


Model = Annotated[Pretrained | Scratch, Field(discriminator="kind")]


class Optimizer(Strict):
    """AdamW with the official scripts' settings (METHOD: lr 1e-5 constant, weight decay 0.01, clip 1.0)."""

    lr: float = Field(default=1e-5, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    grad_clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class Training(Strict):
    """The budget of one stage, the same for every adapter."""

    steps: int = Field(default=100, gt=0, description="rollout batches; an adapter may take several updates on each")
    prompts_per_step: int = Field(default=512, gt=0)
    num_generations: int = Field(
        default=1, gt=0, description="rollouts of each prompt; references from the data come once"
    )
    max_new_tokens: int = Field(default=2048, gt=0)
    temperature: float = Field(default=1.0, gt=0, description="of the rollouts and of both sides' log-probabilities")
    generation_batch: int = Field(default=64, gt=0, description="prompts decoded together; part of what a seed draws")
    micro_batch: int | None = Field(
        default=None, gt=0, description="sequences in one forward; null takes the whole batch"
    )
    autocast: Literal["bfloat16"] | None = Field(
        default=None, description="of forward and backward passes of the student, and of a local teacher's forward"
    )
    train_items: int | None = Field(default=None, gt=0, description="first training items used; null takes all")
    optimizer: Optimizer = Optimizer()


class Decoding(Strict):
    """Generation settings that replace the tasks' own; null keeps what a task says."""

    until: tuple[str, ...] | None = None
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    max_gen_toks: int | None = Field(default=None, gt=0)


class Profile(Decoding):
    """One way of answering: what differs from the suite's `decoding`, and how many answers each item gets."""

    n: int = Field(default=1, gt=0, description="answers of each item, drawn in one call and graded one by one")
    pass_at: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="the k of each pass@k, estimated from the n answers"
    )

    @model_validator(mode="after")
    def _n_answers_can_tell(self) -> Profile:
        if self.pass_at and max(self.pass_at) > self.n:
            raise ValueError(
                f"pass_at asks for pass@{max(self.pass_at)} and n gives {self.n} answers of each item; raise n or drop it"
            )
        if self.n > 1 and (self.temperature == 0 or self.do_sample is False):
            raise ValueError(
                f"n is {self.n} and decoding is greedy, which gives one answer {self.n} times; sample, or n: 1"
            )
        return self

    def over(self, decoding: Decoding) -> Decoding:
        """The suite's decoding with this profile's changes; a temperature alone says whether to sample, too."""
        own = self.model_dump(exclude={"n", "pass_at"}, exclude_none=True)
        if self.temperature is not None:
            own = {"do_sample": self.temperature > 0, **own}
        return Decoding.model_validate({**decoding.model_dump(), **own})


class Drift(Strict):
    """How the distance from the start is measured: on the start's sampled answers to each generating task's first items."""

    items: int = Field(default=16, gt=0, description="first test items of each generating task")
    max_new_tokens: int = Field(default=256, gt=0, description="of an answer, where a task allows no less")


class Evaluation(Strict):
    """How each checkpoint is evaluated after each stage."""

    limit: int | None = Field(default=None, gt=0, description="first test items of each task; null takes all")
    batch_size: int = Field(default=64, gt=0)
    decoding: Decoding = Decoding()
    profiles: dict[Annotated[str, Field(pattern=NAME)], Profile] = Field(
        default={},
        description="ways of answering by name, the first one's scores are the suite's; none is `decoding` alone",
    )
    seed: int = Field(default=1234, description="of the engine's draws, whatever the profile")

    drift: Drift | None = Field(
        default=Drift(), description="KL to the start and entropy after every stage, whatever the adapter; null is off"
    )
    noise_floor: int = Field(
        default=0, ge=0, description="further evaluations of the start with other seeds, under profiles that sample"
    )

    @property
    def all_profiles(self) -> dict[str, Profile]:
        """The profiles by name, in the file's order; one called `default` where the suite names none."""
        return self.profiles or {"default": Profile()}

    @model_serializer(mode="wrap")
    def _only_what_is_asked_for(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later keys at their defaults, so that suites which do not name them keep the hash that they had."""
        dumped: dict[str, Any] = dump(self)
        later: dict[str, Any] = {"profiles": {}, "drift": Drift(), "noise_floor": 0}
        return {key: value for key, value in dumped.items() if key not in later or getattr(self, key) != later[key]}


class VLLM(Strict):
    """How vLLM runs, where `backend` is vllm."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of weights and activations; null takes the student's"
    )
    gpu_memory_utilization: float = Field(
        default=0.4, gt=0, le=1, description="share of the GPU that vLLM takes; training needs the rest"
    )
    cpu_cache_gib: int = Field(default=1, gt=0, description="key-value cache on a CPU, in GiB")
    max_model_len: int | None = Field(default=None, gt=0, description="null takes the model's own context")
    max_num_seqs: int = Field(default=256, gt=0, description="sequences decoded together")
    tensor_parallel_size: int = Field(default=1, gt=0)
    enforce_eager: bool = Field(default=False, description="no CUDA graphs; a CPU never compiles")
    seed: int = Field(default=1234, description="of the engine; every answer has a seed of its own beside it")


class Stage(Strict):
    """One adaptation step: a task, and what differs from the suite's defaults."""

    task: str
    training: Training
    teacher: Model | None = Field(default=None, description="null takes the suite's teacher")
    together: tuple[str, ...] = Field(
        default=(), description="tasks trained in one stage, which `task` then only names"
    )

    @property
    def trains(self) -> tuple[str, ...]:
        """The tasks whose training items this stage draws from."""
        return self.together or (self.task,)


class AdapterEntry(Strict):
    """One method under test; several entries may use one adapter with other options."""

    adapter: str | None = Field(default=None, description="registered name; null takes the entry's own")
    options: dict[str, Any] = {}
    training: dict[str, Any] = Field(
        default={}, description="what differs from the suite's training, for this entry only"
    )


class Suite(Strict):
    """A whole experiment, read from one YAML file."""

    name: str = Field(pattern=NAME)
    description: str = ""
    student: Model
    teacher: Model | None = None
    training: Training = Training()
    stages: tuple[Stage, ...] = Field(min_length=1)
    orders: dict[str, tuple[str, ...]] = Field(default={}, description="name to a permutation of the stages' tasks")
    probes: tuple[str, ...] = ()
    adapters: dict[str, AdapterEntry] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    evaluation: Evaluation = Evaluation()
    backend: Literal["hf", "vllm"] = Field(default="hf", description="what generates rollouts and evaluates")
    vllm: VLLM = VLLM()
    data: dict[str, str] = Field(default={}, description="name to a local path, handed to the tasks' loaders")
    include: tuple[str, ...] = Field(default=(), description="folders with more task files")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, gt=0, description="CPU threads of one run; null leaves torch's default")
    trackers: tuple[Tracker, ...] = Field(
        default=(), description="experiment trackers that get a copy of the figures as a run goes on"
    )
    snapshot_minutes: float | None = Field(
        default=10, ge=0, description="training time that a kill may cost; null starts an interrupted stage anew"
    )

    keep_rollouts: int | None = Field(
        default=64, ge=0, description="training rollouts of each step kept in rollouts.parquet; null keeps all"
    )

    @model_serializer(mode="wrap")
    def _no_vllm_no_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the backend out where it is the one that suites without the key have, so that they keep their hash."""
        dumped: dict[str, Any] = dump(self)
        return {key: value for key, value in dumped.items() if self.backend != "hf" or key not in ("backend", "vllm")}

    @model_validator(mode="after")
    def _names_are_consistent(self) -> Suite:
        tasks, names = list(self._trained), [stage.task for stage in self.stages]
        for values in (tasks, names):
            if repeated := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"stages train {', '.join(repeated)} more than once; give each stage its own task")
        for name, values in (("probes", self.probes), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} name one twice; give each once")
        if trained := sorted(set(self.probes) & set(tasks)):
            raise ValueError(f"probes {', '.join(trained)} are also trained; a probe is a task that no stage trains")
        if unclear := sorted({s.task for s in self.stages if s.together} & {*tasks, *self.probes}):
            raise ValueError(
                f"stage {', '.join(unclear)} trains tasks together and is named as one; give it another name"
            )
        if JOINT in {*self.orders, *names}:
            raise ValueError(f"{JOINT!r} is the order that trains all tasks in one stage; choose another name")
        for name, order in self.orders.items():
            if sorted(order) != sorted(names):
                raise ValueError(f"order {name!r} is {list(order)}, expected a permutation of {names}")
        return self

    def context(self, of_model: int) -> int:
        """The longest sequence, in tokens, that the backend takes of a model with a context of `of_model`."""
        own = self.vllm.max_model_len if self.backend == "vllm" else None
        return min(of_model, own or of_model)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All evaluated tasks: the stages' in the file's order, then the probes."""
        return (*self._trained, *self.probes)

    @property
    def _trained(self) -> tuple[str, ...]:
        return tuple(task for stage in self.stages for task in stage.trains)

    def ordered_stages(self, order: str = "default") -> tuple[Stage, ...]:
        """The stages in a named order; `default` is the file's, `joint` is one stage over all tasks."""
        if order == "default" and order not in self.orders:
            return self.stages
        if order == JOINT:
            return (self._joint_stage(),)
        if order not in self.orders:
            known = ", ".join(["default", JOINT, *self.orders])
            raise ValueError(f"order {order!r} is not one of {known}")
        by_task = {stage.task: stage for stage in self.stages}
        return tuple(by_task[task] for task in self.orders[order])

    def training_for(self, stage: Stage, entry: str) -> Training:
        """A stage's budget under one adapter entry: the stage's own, then what the entry changes."""
        changed = Training.model_validate(merge(stage.training.model_dump(), self.adapters[entry].training))
        if stage.task != JOINT:
            return changed
        return changed.model_copy(update={"steps": sum(self.training_for(s, entry).steps for s in self.stages)})

    def _joint_stage(self) -> Stage:
        """One stage over all tasks with the steps of all stages; what else they say of training must agree."""
        first = self.stages[0]
        steps = sum(stage.training.steps for stage in self.stages)
        for stage in self.stages[1:]:
            if stage.teacher != first.teacher or _but_steps(stage) != _but_steps(first):
                raise ValueError(
                    f"order {JOINT!r} trains all tasks in one stage, but stages {first.task} and {stage.task} differ in "
                    "teacher or training; give them the same, apart from steps"
                )
        training = first.training.model_copy(update={"steps": steps})
        return Stage(task=JOINT, training=training, teacher=first.teacher, together=self._trained)


def _but_steps(stage: Stage) -> dict[str, Any]:
    return stage.training.model_dump(exclude={"steps"})


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value  # pyright: ignore[reportUnknownArgumentType]
    return merged


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
