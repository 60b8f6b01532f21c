"""Direction checks: what a method's gradient is in expectation, computed exactly over the vocabulary at one position.

The expectation is E_y[g(y)] with y ~ q, or y ~ p for responses of the teacher. Every y is a response of one token in a whole
training step, and a top K is the whole vocabulary, so that divergences are exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from adapters.conformance.dense import over_responses, scoring_model
from adapters.conformance.outcomes import ConformanceError, DoesNotApply
from adapters.conformance.recording import (
    Gradient,
    Update,
    add_gradients,
    distance,
    flatten,
    gradient_of,
    record_updates,
    size,
)
from adapters.conformance.small_stage import AdapterUnderTest
from adapters.loop.divergences import forward_kl, reverse_kl
from adapters.loop.training_loop import LoopAdapter
from harness.adapter import StageContext
from harness.lm.rollouts import Example, Rollout
from harness.teachers.local import LocalTeacher

PROMPT = [3, 4, 5]
TOLERANCE = 1e-6
NOTHING = 1e-9
KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
WRITTEN = {"forward_kl": "forward KL(p || q)", "reverse_kl": "reverse KL(q || p)"}


def follows_its_objective(subject: AdapterUnderTest) -> None:
    """In expectation, the gradient is that of the declared divergence from the teacher; if none is declared, it lowers one."""
    adapter = with_whole_vocabulary(subject)
    ctx = one_position(subject)
    logp = teacher_rows(adapter, ctx)
    towards = {name: parameter_gradient(ctx, kl, logp) for name, kl in KL.items()}
    found = expected_gradient(adapter, ctx)
    if adapter.objective is None:
        if not any(_dot(found, gradient) > 0 for gradient in towards.values()):
            raise ConformanceError(
                "a step against the expected gradient lowers neither KL(p || q) nor KL(q || p) to the teacher; look at the "
                "sign of the loss, and at which side is the student's"
            )
        return
    _same(found, towards, adapter.objective)


def expects_a_gradient(subject: AdapterUnderTest) -> None:
    """In expectation, the gradient is not zero while student and teacher differ."""
    adapter = with_whole_vocabulary(subject)
    ctx = one_position(subject)
    found = size(expected_gradient(adapter, ctx))
    if not found > NOTHING:
        raise ConformanceError(
            f"the expected gradient is {found:.1e} although student and teacher differ; the loss has lost its gradient: look "
            "for a detach or a clamp"
        )


def rests_at_the_teacher(subject: AdapterUnderTest) -> None:
    """In expectation, a student that equals its teacher does not change."""
    adapter = with_whole_vocabulary(subject)
    ctx = one_position(subject, teacher_seed=0)
    if adapter.teacher_prompts(ctx, [_rollout(ctx)]) is not None:
        raise DoesNotApply("its teacher reads other prompts than the student, so the same weights are another policy")
    found = size(expected_gradient(adapter, ctx))
    if not found <= NOTHING:
        raise ConformanceError(
            f"teacher and student are the same, but the expected gradient is {found:.1e}, expected 0; the loss moves the "
            "student to something other than the teacher"
        )


def raises_what_it_credits(subject: AdapterUnderTest) -> None:
    """Without a teacher, a step raises the probability of references, or of responses with a higher reward than others."""
    adapter = subject.method
    if adapter.requirements.teacher != "none" or scoring_model(adapter, subject.stage()) is not None:
        raise DoesNotApply("a teacher takes part, so the check `direction` applies")
    ctx = subject.stage()
    for update in record_updates(adapter, ctx):
        rollouts = [rollout for batch in update.batches for rollout in batch.rollouts]
        uphill = _uphill(ctx, rollouts, _worth(ctx, rollouts))
        if not float(flatten(update.gradient) @ flatten(uphill)) < 0:
            what = "responses with a high reward" if _rewarded(rollouts) else "references"
            raise ConformanceError(
                f"a step against the gradient makes {what} less probable; look at the sign of the loss, and of the credit"
            )


def with_whole_vocabulary(subject: AdapterUnderTest) -> LoopAdapter:
    """Return the method with its top K over the whole vocabulary; raises `DoesNotApply` where no teacher takes part."""
    adapter = subject.method
    if adapter.requirements.teacher == "none" and scoring_model(adapter, subject.stage()) is None:
        raise DoesNotApply("no teacher takes part")
    if adapter.teacher_request.top_k and "top_k" not in type(adapter).model_fields:
        raise DoesNotApply("its top K cannot be set to the whole vocabulary; name the option `top_k`")
    return adapter.model_copy(update={"top_k": subject.vocabulary}) if adapter.teacher_request.top_k else adapter


def expected_gradient(adapter: LoopAdapter, ctx: StageContext) -> Gradient:
    """Return E_y[g(y)]: each y's gradient, weighted by its probability under the student or teacher that answers."""
    probability = student_rows(ctx).detach().exp()[0]
    if adapter.source(0) == "teacher":
        probability = teacher_rows(adapter, ctx).exp()[0]
    return expectation(record_updates(adapter, ctx), probability)


def expectation(updates: Sequence[Update], probability: Tensor) -> Gradient:
    """Return the sum of the gradients of one-token responses in `updates`, each weighted by its `probability` (V,)."""
    parts: list[Gradient] = []
    for update in updates:
        for batch, part in zip(update.batches, update.parts, strict=True):
            # An update's loss is a mean over its responses, which is undone here.
            share = float(probability[batch.rollouts[0].response[0]]) * len(update.batches)
            parts.append(add_gradients([part], [share]))
    return add_gradients(parts)


def student_rows(ctx: StageContext) -> Tensor:
    """Return the student's log-probabilities (1, V) after the prompt, with gradient."""
    return _rows(ctx.student.model, PROMPT)


def teacher_rows(adapter: LoopAdapter, ctx: StageContext) -> Tensor:
    """Return the teacher's log-probabilities (1, V) after the prompt that the teacher reads."""
    model = scoring_model(adapter, ctx)
    prompts = None if model is None else adapter.teacher_prompts(ctx, [_rollout(ctx)])
    if model is None:
        assert isinstance(ctx.teacher, LocalTeacher)
        model = ctx.teacher.model
    return _rows(model, PROMPT if prompts is None else prompts[0]).detach()


def parameter_gradient(ctx: StageContext, divergence: Callable[[Tensor, Tensor], Tensor], logp: Tensor) -> Gradient:
    """Return the gradient of a divergence from the teacher's `logp` (1, V) with respect to the student's weights."""
    return gradient_of(divergence(student_rows(ctx), logp).sum(), ctx.student)


def one_position(subject: AdapterUnderTest, teacher_seed: int = 1, **training: Any) -> StageContext:
    """Return a stage that has the same prompt for every token of the vocabulary, with the token as its answer."""
    pairs = [(PROMPT, [token]) for token in range(subject.vocabulary)]
    # A reference is the student's own start, unless it is the only teacher; then it gets the teacher's weights.
    reference_seed = 0 if subject.method.scores_start else teacher_seed
    ctx = subject.stage(pairs, teacher_seed=teacher_seed, reference_seed=reference_seed, micro_batch=1, **training)
    if ctx.training.num_generations > 1:
        raise DoesNotApply("it needs several responses to each prompt, and the expectation is over single ones")
    # A teacher that reads the reference answer must read the same one for every response.
    return replace(ctx, examples=[replace(example, doc=ctx.examples[0].doc) for example in ctx.examples])


def _rollout(ctx: StageContext) -> Rollout:
    example: Example = ctx.examples[0]
    return Rollout(example, example.target, "stop")


def _rows(model: Any, prompt: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([prompt]), use_cache=False).logits[:, -1].log_softmax(-1)


def _dot(first: Gradient, second: Gradient) -> float:
    return float(flatten(first) @ flatten(second))


def _same(found: Gradient, towards: dict[str, Gradient], objective: str) -> None:
    expected = towards.pop(objective)
    (other, opposite), declared = next(iter(towards.items())), WRITTEN[objective]
    if (off := distance(found, expected)) <= TOLERANCE:
        return
    if distance(found, opposite) <= TOLERANCE:
        raise ConformanceError(
            f"the expected gradient is that of the {WRITTEN[other]}, but the adapter declares the {declared}; swap student "
            "and teacher in the loss, or correct `objective`"
        )
    factor = _dot(found, expected) / _dot(expected, expected)
    if distance(found, add_gradients([expected], [factor])) <= TOLERANCE and factor > 0:
        raise ConformanceError(
            f"the expected gradient is {factor:.4g} times that of the declared {declared}; drop the factor, for example a "
            "division by K or a mean over the micro-batch"
        )
    raise ConformanceError(
        f"the expected gradient is {off:.1e} of its size away from that of the declared {declared}; fix the loss, or leave "
        "`objective` None"
    )


def _rewarded(rollouts: Sequence[Rollout]) -> bool:
    return any(rollout.reward is not None for rollout in rollouts)


def _worth(ctx: StageContext, rollouts: Sequence[Rollout]) -> list[float]:
    """Return 1 for each reference, or each response's reward minus its prompt's mean; the task computes the rewards again."""
    if not _rewarded(rollouts):
        return [1.0] * len(rollouts)
    groups: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for rollout in rollouts:
        groups[tuple(rollout.example.prompt)].append(ctx.reward(rollout))
    worth = [ctx.reward(r) - fmean(groups[tuple(r.example.prompt)]) for r in rollouts]
    if not any(worth):
        raise DoesNotApply("all responses to a prompt have the same reward, so none should become more probable")
    return worth


def _uphill(ctx: StageContext, rollouts: Sequence[Rollout], worth: Sequence[float]) -> Gradient:
    """Return the gradient of sum_y worth(y) mean_t log q(y_t), which raises the worthy responses."""
    rows = over_responses(ctx.student.model, [r.example.prompt for r in rollouts], rollouts, 1.0)
    targets = torch.tensor([token for r in rollouts for token in r.response])
    shares = [value / len(r.response) for value, r in zip(worth, rollouts, strict=True) for _ in r.response]
    own = rows.gather(-1, targets[:, None])[:, 0]
    return gradient_of((own * torch.tensor(shares, dtype=own.dtype)).sum(), ctx.student)
