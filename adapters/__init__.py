"""The training methods under test, and the public interface for new ones, which this module exports.

A method is one class in one file, registered under the entry point group `harness.adapters`:

- `opd.py` on-policy distillation, and `PolicyGradient`, the base of `aopd.py`, `eopd.py`, `exopd.py`, `tropd.py`, `vopd.py`
- `gkd.py` the generalised Jensen-Shannon divergence, and `FullVocabulary`, the base of `sdft.py` and reverse KL
- `kl.py` forward and reverse KL; `sft.py` supervised fine-tuning on references and on the teacher's samples
- `grpo.py` a policy gradient on verifiable rewards; `none.py` the control, which trains on nothing
- `loop/` the training loop that the methods share: a method of the loop states its loss per token
- `wrappers/` methods against forgetting that change another trainer's stage: replay, EWC, KL to the start, LoRA
- `trainers/` trainers with a loop of their own: TRL, and a command of the user
- `conformance/` checks of what every adapter promises: `harness adapters check NAME`
- `commands/` the command `harness adapters`: list, show, check, document

To add one: derive from `LoopAdapter` and write `token_losses`, register the class, run `harness adapters check NAME`
(docs/add-an-adapter.md). Adapters import `harness`, which never imports them. Names are loaded on first use, so importing
this package does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.conformance.all_checks import check_adapter as check_adapter
    from adapters.conformance.all_checks import failures as failures
    from adapters.gkd import FullVocabulary as FullVocabulary
    from adapters.loop.divergences import Tail as Tail
    from adapters.loop.divergences import forward_kl as forward_kl
    from adapters.loop.divergences import generalised_jsd as generalised_jsd
    from adapters.loop.divergences import reverse_kl as reverse_kl
    from adapters.loop.divergences import top_k_forward_kl as top_k_forward_kl
    from adapters.loop.guards import Guards as Guards
    from adapters.loop.prompts import prompt_batches as prompt_batches
    from adapters.loop.tokens import TokenLosses as TokenLosses
    from adapters.loop.tokens import Tokens as Tokens
    from adapters.loop.tokens import require as require
    from adapters.loop.training_loop import LoopAdapter as LoopAdapter
    from adapters.loop.training_loop import Objective as Objective
    from adapters.opd import PolicyGradient as PolicyGradient
    from adapters.opd import clipped_policy_gradient as clipped_policy_gradient
    from adapters.wrappers.wrapper import PenaltyWrapper as PenaltyWrapper
    from adapters.wrappers.wrapper import Wrapper as Wrapper
    from harness.adapter import Adapter as Adapter
    from harness.adapter import Capabilities as Capabilities
    from harness.adapter import Needs as Needs
    from harness.adapter import Penalties as Penalties
    from harness.adapter import Requirements as Requirements
    from harness.adapter import Source as Source
    from harness.adapter import StageContext as StageContext
    from harness.adapter import StageResult as StageResult
    from harness.config.training import Training as Training
    from harness.errors import ConfigError as ConfigError
    from harness.errors import NotFiniteError as NotFiniteError
    from harness.errors import TrainingError as TrainingError
    from harness.lm.logprobs import TeacherRequest as TeacherRequest
    from harness.lm.rollouts import Example as Example
    from harness.lm.rollouts import Rollout as Rollout

_PUBLIC = {
    "adapters.conformance.all_checks": ("check_adapter", "failures"),
    "adapters.gkd": ("FullVocabulary",),
    "adapters.loop.divergences": ("Tail", "forward_kl", "generalised_jsd", "reverse_kl", "top_k_forward_kl"),
    "adapters.loop.guards": ("Guards",),
    "adapters.loop.prompts": ("prompt_batches",),
    "adapters.loop.tokens": ("TokenLosses", "Tokens", "require"),
    "adapters.loop.training_loop": ("LoopAdapter", "Objective"),
    "adapters.opd": ("PolicyGradient", "clipped_policy_gradient"),
    "adapters.wrappers.wrapper": ("PenaltyWrapper", "Wrapper"),
    "harness.adapter": (
        "Adapter",
        "Capabilities",
        "Needs",
        "Penalties",
        "Requirements",
        "Source",
        "StageContext",
        "StageResult",
    ),
    "harness.config.training": ("Training",),
    "harness.errors": ("ConfigError", "NotFiniteError", "TrainingError"),
    "harness.lm.logprobs": ("TeacherRequest",),
    "harness.lm.rollouts": ("Example", "Rollout"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adapters' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


# Part of continual-harness: the command line looks for this line, see harness/cli/own_packages.py.
