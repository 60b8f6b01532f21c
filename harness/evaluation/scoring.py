"""Turn graded answers into the rows of samples.parquet and the summary of results.json.

samples.parquet has one row per item and answer, the answers of an item one after another:
- `item_id`: the document's hash, numbered where documents are identical; `sample`: 0 to n - 1 within the item.
- `cluster`: items with the same value depend on each other, see `Task.cluster`; resampling draws clusters. Without
  `metadata.harness.cluster` each document is its own cluster.
- `prompt`, `target`, `response`: text; `finish`: `stop` or `length`; `tokens`: of the response, stop token included.
- `score`: the primary metric, see `harness.lmeval.score`; `outcome`: correct, wrong, unparsed or truncated; then every
  metric of the task that has a value for one item, in its own unit.

A task that is scored by likelihoods has no answers: `response` is the choice with the highest likelihood, empty where there
are no choices; `finish` is null, `tokens` 0, and `loglikelihoods` has one number in nats for each request. `outcome` is
correct or wrong, and null under a perplexity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import TaskError
from harness.evaluation.answering import Answer
from harness.lmeval.documents import item_id
from harness.lmeval.score import has_outcome
from harness.lmeval.task import Task
from harness.rundir.records.cell_records import OUTCOMES, CellSummary, Keys
from harness.stats.sampling import pass_at_k

FIXED = ("item_id", "cluster", "sample", "prompt", "target", "response", "finish", "tokens", "score", "outcome")
Answers = Mapping[tuple[str, int], list[Answer]]


def sample_rows(task: Task, logged: Sequence[Mapping[str, Any]], answers: Answers) -> pd.DataFrame:
    """Return one row per item and answer, graded through the task's filter.

    `logged` are lm-eval's samples of the task, `answers` the model's by (task, document index). Raises `TaskError` for an item
    that the model was never asked.
    """
    chosen = _of_filter(task, logged)
    ids = numbered_ids(sample["doc"] for sample in chosen)
    return pd.DataFrame(
        row for identity, sample in zip(ids, chosen, strict=True) for row in _rows(task, identity, sample, answers)
    )


def numbered_ids(docs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the documents' ids; from the second of identical documents on, an id ends with its number: `<id>#2`."""
    seen: dict[str, int] = {}
    ids: list[str] = []
    for base in map(item_id, docs):
        seen[base] = seen.get(base, 0) + 1
        ids.append(base if seen[base] == 1 else f"{base}#{seen[base]}")
    return ids


def _rows(task: Task, identity: str, sample: Mapping[str, Any], answers: Answers) -> Iterator[dict[str, Any]]:
    """Yield an item's rows; lm-eval graded the first answer, and the others are graded here in the same way."""
    first, cluster = _graded(sample), task.cluster(sample["doc"])
    if not task.generates:
        facts = {"item_id": identity, "cluster": cluster, "sample": 0, **_likelihood_facts(task, sample)}
        yield graded_row(task, facts, first)
        return
    if not (given := answers.get((task.name, sample["doc_id"]))):
        raise TaskError(
            f"task {task.name}: lm-eval has an answer to item {sample['doc_id']}, but the model was never asked; switch off "
            "what answered in its place, such as a cache"
        )
    for number, answer in enumerate(given):
        facts = {
            "item_id": identity,
            "cluster": cluster,
            "sample": number,
            "prompt": str(sample["arguments"][0][0]),
            "target": str(sample["target"]),
            "response": answer.text,
            "finish": answer.finish,
            "tokens": answer.tokens,
        }
        yield graded_row(task, facts, first if number == 0 else task.grade(dict(sample["doc"]), answer.text))


def _likelihood_facts(task: Task, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return prompt, target, chosen response and log-likelihoods of one logged item."""
    values = [float(found[0] if isinstance(found, (tuple, list)) else found) for found in sample["filtered_resps"]]
    requests = [tuple(map(str, request)) for request in sample["arguments"]]
    choices = _choices(task, sample["doc"], requests)
    target = sample["target"]
    if choices and isinstance(target, int) and 0 <= target < len(choices):
        target = choices[target]
    return {
        "prompt": requests[0][0],
        "target": "" if task.output_type == "loglikelihood_rolling" else str(target),
        "response": _most_likely(choices, values[: len(choices)], task.metric) if choices else "",
        "finish": None,
        "tokens": 0,
        "loglikelihoods": values,
    }


def _choices(task: Task, doc: Any, requests: list[tuple[str, ...]]) -> list[str]:
    """Return the choices as text: whole contexts where the choices are in the context, else continuations."""
    if task.output_type != "multiple_choice":
        return []
    named = task.choices(doc)
    return [request[0] for request in requests[: len(named)]] if task.multiple_input else named


def _most_likely(choices: list[str], values: list[float], metric: str) -> str:
    """Return the choice that counts as the answer; acc_norm divides log-likelihoods by the choice's characters."""
    lengths = [max(1, len(choice)) if metric == "acc_norm" else 1 for choice in choices]
    return choices[int(np.argmax(np.array(values) / np.array(lengths)))]


def first_grades(task: Task, logged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of logged samples under the task's filter, as `process_results` returned them."""
    return [_graded(sample) for sample in _of_filter(task, logged)]


def _graded(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sample[name] for name in sample["metrics"]}


def _of_filter(task: Task, logged: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [sample for sample in logged if sample["filter"] == task.filter_name]


def graded_row(task: Task, facts: Mapping[str, Any], grades: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer's row: `facts`, and the score, outcome and metrics of its `grades`."""
    metrics, score = task.item_values(grades), task.score(grades)
    found = {"score": score, "outcome": outcome_of(task.metric, score, metrics, facts["finish"])}
    return {**facts, **found, **{name: value for name, value in metrics.items() if name not in FIXED}}


def outcome_of(metric: str, score: float, metrics: Mapping[str, float] = {}, finish: str | None = None) -> str | None:
    """Return whether an answer is correct, truncated, unparsed or wrong; None under a metric without outcomes.

    `metrics` are all of the answer's; `parsed: 0` marks an answer that could not be parsed.
    """
    if not has_outcome(metric):
        return None
    if score >= 1:
        return "correct"
    if finish == "length":
        return "truncated"
    return "unparsed" if metrics.get("parsed", 1.0) == 0 else "wrong"


def item_scores(samples: pd.DataFrame) -> pd.Series:
    """Return each item's score, the mean over its answers, in the items' order."""
    return samples.groupby("item_id", sort=False)["score"].mean()


def summarise_cell(
    task: Task,
    samples: pd.DataFrame,
    grades: Iterable[Mapping[str, Any]],
    keys: Keys,
    weights: str,
    seed: int,
    seconds: float,
) -> CellSummary:
    """Return a cell's summary.

    `grades` are those of each item's first answer, as `process_results` returned them; `weights` is a digest.
    """
    apart = {*FIXED, "loglikelihoods"}
    means = {str(name): float(samples[name].mean()) for name in samples.columns if name not in apart}
    found = {
        "metrics": {**means, **task.aggregates(grades), **_of_several(task, samples)},
        **({"pass_at": task.pass_at} if task.pass_at else {}),
        "seconds": round(seconds, 3),
        "weights": weights,
        "seed": seed,
        "keys": keys,
    }
    return summary_of(task.name, task.metric, samples).model_copy(update=found)


def summary_of(name: str, metric: str, samples: pd.DataFrame) -> CellSummary:
    """Return the part of a cell's summary that is computed from its rows.

    The score is the mean over items of the mean over each item's answers; outcomes count answers; `clusters` is the number of
    distinct clusters.
    """
    counts = samples["outcome"].value_counts()
    items = item_scores(samples)
    return CellSummary(
        task=name,
        metric=metric,
        score=float(items.mean()),
        metrics={metric: float(items.mean())},
        n=len(items),
        clusters=int(samples["cluster"].nunique()),
        samples=len(samples) // len(items),
        outcomes={name: int(counts.get(name, 0)) for name in OUTCOMES},
        response_tokens_mean=float(samples["tokens"].mean()),
        response_tokens_max=int(samples["tokens"].max()),
    )


def _of_several(task: Task, samples: pd.DataFrame) -> dict[str, float]:
    """Return mean@n where items have several answers, and each pass@k; a score of 1 solves an item."""
    items = samples.groupby("item_id", sort=False)["score"]
    drawn, solved = items.size(), items.agg(lambda scores: int((scores >= 1).sum()))
    n = int(drawn.iloc[0])
    found = {f"mean@{n}": float(items.mean().mean())} if n > 1 else {}
    for k in task.pass_at:
        found[f"pass@{k}"] = float(pd.Series([pass_at_k(n, int(correct), k) for correct in solved]).mean())
    return found
