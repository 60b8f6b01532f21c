"""Runs whose served teacher breaks most of its answers: each ends with the numbers of an undisturbed one."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.lm.checkpoints import load_checkpoint
from harness.lmeval.library import TaskLibrary
from harness.pipeline.build.model_source import checkpoint_of
from tests.soak.forked_runs import finish_run, go_on
from tests.soak.outcomes import Outcomes
from tests.support.models import micro_suite, write_yaml
from tests.support.servers.fake_server import FakeServer, serving
from tests.support.servers.fault_proxy import RESTARTED, FaultProxy

COUNTED = (
    "a broken answer of a served teacher while a whole run trains: time-outs, errors, cut, malformed, stale and swapped "
    "answers, other weights; lost: the run ends; changed: compared as for kills."
)
SHARE = 0.7  # of the answers to requests of training


def break_answers(folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Do whole runs with two replicas behind proxies until `count` answers were broken; a run that ends badly counts once."""
    found, faults, runs, errors = Outcomes("served faults", COUNTED), Counter[str](), 0, folder / "errors.txt"
    suite = load_suite(str(write_yaml(folder / "micro.yaml", micro_suite())))
    library, stack = TaskLibrary(), ExitStack()
    with stack:
        served: list[str] = []
        for spec in (suite.teacher, suite.student):
            model: Any = spec
            loaded = load_checkpoint(checkpoint_of(model, 0, library), model, "cpu")
            served.append(stack.enter_context(serving(FakeServer(loaded.model, loaded.renderer.tokenizer))))
        steps = min(24, max(4, count // 40))
        undisturbed = _spec(folder, "undisturbed", served[:1], steps)
        assert finish_run(undisturbed, errors) == "", errors.read_text()
        while faults.total() < count:
            proxies = [FaultProxy(served[0], SHARE, seed=2 * (seed + runs) + i, other=served[1]) for i in range(2)]
            for proxy in proxies:
                proxy.active = proxy.only_training = True
            urls = [stack.enter_context(serving(proxy)) for proxy in proxies]
            result, evidence = go_on(_spec(folder, f"broken-{runs}", urls, steps), undisturbed, errors, hurry)
            broken = sum((proxy.injected for proxy in proxies), Counter[str]())
            assert broken, "a run whose teacher never breaks an answer tests nothing"
            found.counts["held"] += broken.total() - (result != "held")
            if result != "held":
                found.add(result, f"run {runs}: {evidence}")
            faults, runs = faults + broken, runs + 1
    kinds, restarted = len(faults), faults[RESTARTED]
    found.note = f"{faults.total()} faults of {kinds} kinds in {runs} runs; {restarted} were answers of other weights."
    return found


def hurry() -> None:
    """Let the pauses between tries be short, in the process of a run."""
    from harness.lm.replicas import Patience

    defaults = Patience.__init__.__defaults__
    assert defaults is not None
    Patience.__init__.__defaults__ = (*defaults[:-1], 0.01)  # of `longest_pause`
    assert Patience().longest_pause == 0.01


def _spec(folder: Path, name: str, urls: list[str], steps: int) -> RunSpec:
    """Return an AOPD run of more steps than the micro suite's, taught by servers that get each response in its own request."""
    raw = micro_suite()
    limits = {"batch": 1, "timeout": 2.0, "deadline": 600.0, "wrong_answers": 1000}
    if name == "undisturbed":
        limits["timeout"] = 60.0
    raw["teacher"] = {"kind": "server", "urls": urls, "model": "teacher", **limits}
    raw["training"]["steps"] = steps
    raw["adapters"] = {"aopd": {"options": {"top_k": 4}}}
    file = write_yaml(folder / f"{name}.yaml", raw)
    return RunSpec(load_suite(str(file), ["student.seed=0"]), "aopd", 0, out=folder / name)
