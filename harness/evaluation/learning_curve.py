"""Learning curves: score a few tasks during a stage, at regular steps, on the same first test items each time.

The engine that draws the stage's rollouts answers, so a point takes one short generation and no checkpoint. The answers use
their own random numbers, so training ends with the same weights with and without a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.engines.engine import Engine, answer_all
from harness.evaluation.answering import sampling_of, up_to
from harness.lm.chat import Renderer
from harness.lmeval.task import Task
from harness.rundir.files import CURVE, read_lines
from harness.rundir.records.training_records import CurvePoint


class CurveRecorder:
    """Scores tasks on their first `items` test items and appends a `CurvePoint` for each task to `<folder>/curve.jsonl`.

    The tasks, by name, must generate answers; their own settings say how, apart from n: each item gets `answers`, and its
    score is their mean. `seed` decides the draws.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        engine: Engine,
        renderer: Renderer,
        items: int,
        seed: int,
        folder: Path,
        answers: int = 1,
    ) -> None:
        self.tasks, self.engine, self.renderer = tasks, engine, renderer
        self.items, self.answers, self.seed, self.path = items, answers, seed, folder / CURVE

    def record(self, step: int) -> None:
        """Score every task after `step` training steps, unless the file holds that step already."""
        if step in self._recorded():
            return
        lines = [self._line(step, name) for name in self.tasks]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line.model_dump_json()}\n" for line in lines)

    def _recorded(self) -> set[int]:
        return {point.step for point in read_lines(self.path, CurvePoint)}

    def _line(self, step: int, name: str) -> CurvePoint:
        task, asked = self.tasks[name], self._asked[name]
        sampling = sampling_of(task.generation, name, self.renderer.stop_ids, self.seed)
        repeated = [each for each in asked for _ in range(self.answers)]
        done = answer_all(self.engine, [prompt for _, prompt in repeated], sampling)
        texts = [up_to(self.renderer.decode(completion.tokens), sampling.stop_strings) for completion in done]
        drawn = [task.score(task.grade(doc, text)) for (doc, _), text in zip(repeated, texts, strict=True)]
        scores = [fmean(drawn[place : place + self.answers]) for place in range(0, len(drawn), self.answers)]
        clusters = tuple(task.cluster(doc) for doc, _ in asked)
        return CurvePoint(step=step, task=name, score=sum(scores) / len(scores), items=tuple(scores), clusters=clusters)

    @cached_property
    def _asked(self) -> dict[str, list[tuple[dict[str, Any], list[int]]]]:
        """The documents of each task with their prompts as token ids."""
        found: dict[str, list[tuple[dict[str, Any], list[int]]]] = {}
        for name, task in self.tasks.items():
            docs = task.test_docs(self.items)
            prompts = self.renderer.encode_prompts(task.asked(docs, self.renderer))
            found[name] = list(zip(docs, prompts, strict=True))
        return found
