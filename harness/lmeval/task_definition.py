"""A task's file as lm-eval loads it and as the harness reads it: filters, metrics, decoding, and its path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig
from pydantic import Field, ValidationError

from harness.config.base import Strict, is_mapping
from harness.config.explain import explain
from harness.errors import TaskError
from harness.lmeval.score import default_metric
from harness.rundir.stage_folder import cell_name


class TaskSettings(Strict):
    """The keys of `metadata.harness`, which only the harness reads; all are optional, see `docs/add-a-task.md`."""

    metric: str | None = Field(default=None, description="the metric that is the task's score")
    training_target: str | None = Field(default=None, description="field or template of the text to train on")
    cluster: str | Callable[..., Any] | None = Field(
        default=None,
        description="field, template or function of the document: items with the same value depend on each other",
    )
    capability: str | None = Field(default=None, description="a label for lists and reports")
    memorise: bool = Field(default=False, description="whether training and test items are the same on purpose")


class TaskDefinition:
    """The settings of one lm-eval task, under one evaluation profile and one of its graders.

    `profile` is empty for the suite's first one, `grader` for the task's own; `pass_at` holds the k of each pass@k.
    `filter_name` is the filter through which answers are graded: the task's first, or the one that its group averages.
    `lmeval` is lm-eval's own object; only this folder uses it, and the evaluator, which passes it back to lm-eval.
    """

    def __init__(
        self,
        name: str,
        lmeval: ConfigurableTask,
        profile: str = "",
        pass_at: Sequence[int] = (),
        grader: str = "",
        filter_name: str = "",
    ) -> None:
        self.name = name
        self.lmeval = lmeval
        self.filter_name = filter_name or str(self.filters[0])
        self.profile = profile
        self.pass_at = tuple(pass_at)
        self.grader = grader

    @property
    def filters(self) -> list[str]:
        """The names of the task's filters, in its file's order."""
        return [str(pipeline.name) for pipeline in self.lmeval._filters]

    @property
    def cell(self) -> str:
        """The name of this task's cells."""
        return cell_name(self.name, self.profile)

    @cached_property
    def settings(self) -> TaskSettings:
        """The settings under `metadata.harness`; raises `TaskError` for a key or value that is not allowed."""
        return _read_settings(self.config.metadata, str(self.source or f"task {self.name}"))

    @property
    def config(self) -> TaskConfig:
        """The task's configuration, as lm-eval read it from the file."""
        return self.lmeval.config

    @property
    def output_type(self) -> str:
        """What a model returns: generate_until, multiple_choice, loglikelihood or loglikelihood_rolling."""
        return str(self.lmeval.OUTPUT_TYPE)

    @property
    def multiple_input(self) -> bool:
        """Whether the choices are in the contexts, which all have the same continuation."""
        return bool(self.lmeval.multiple_input)

    @property
    def generates(self) -> bool:
        """Whether the model writes an answer; stages need such tasks."""
        return self.output_type == "generate_until"

    @property
    def metric(self) -> str:
        """The primary metric: the chosen grader, else `metadata.harness.metric`, else that of `default_metric`."""
        return self.grader or self.settings.metric or default_metric(self.lmeval)

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """The metrics that the task's `process_results` returns, and whether higher is better in each."""
        return dict(self.lmeval.higher_is_better())

    @property
    def graders(self) -> list[str]:
        """The names of the metrics of `higher_is_better`; those of `can_be_score` can be the score."""
        return list(self.higher_is_better)

    @property
    def generation(self) -> dict[str, Any]:
        """The resolved generation settings of the task."""
        return dict(self.config.generation_kwargs or {})

    @property
    def source(self) -> Path | None:
        """The task's file, or None for a task that has none."""
        metadata = self.config.metadata
        name = metadata.get("config_source", "") if isinstance(metadata, dict) else ""
        return Path(name) if name.endswith(".yaml") else None

    def set_generation(self, settings: dict[str, Any]) -> None:
        """Replace the generation settings of the loaded task, because lm-eval reads them reliably only there."""
        self.lmeval.set_config("generation_kwargs", settings)


def _read_settings(metadata: Any, where: str) -> TaskSettings:
    """Read `metadata.harness`; raises `TaskError` with file, key, what was found and what was expected."""
    found = metadata.get("harness") if is_mapping(metadata) else None
    if found is not None and not is_mapping(found):
        keys = ", ".join(TaskSettings.model_fields)
        raise TaskError(f"{where}: metadata.harness is {found!r}, expected a mapping with keys among {keys}")
    try:
        return TaskSettings.model_validate(found or {})
    except ValidationError as error:
        raise TaskError(f"{where}: metadata.harness: {explain(error, TaskSettings)}") from error
