"""Find training prompts in test sets: the prompts of every stage and of the warm-up are compared with every test set.

Exact matches compare the SHA-256 of prompts after NFKC, case folding and collapsing white space. N-grams are those of GPT-3
(Brown et al. 2020, arXiv 2005.14165, appendix C): 13 words without case and punctuation. An n-gram in more than 10 training
prompts is ignored as a template, such as an instruction or an API's description, and so are n-grams that overlap one.
Prompts are the tasks' `doc_to_text`: without description, few-shot examples and chat template.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.config.base import digest
from harness.config.models import Scratch
from harness.config.run_spec import RunSpec
from harness.rundir.records.overlap_record import NGRAM, TEMPLATE, Overlap, OverlapRow

if TYPE_CHECKING:
    from harness.lmeval.library import TaskLibrary
    from harness.lmeval.task import Task

Ngram = tuple[str, ...]


def stream_overlap(spec: RunSpec, tasks: Mapping[str, Task], library: TaskLibrary) -> Overlap:
    """Return the comparison of all prompts that a run trains on, its student's warm-up included, with all that it evaluates.

    `tasks` are the suite's, by name; `library` loads other tasks of the warm-up. Raises `TaskError` for a stage without
    training items.
    """
    training = list(_training_splits(spec, tasks, library))
    tests = [read_split(tasks[name], tasks[name].test_docs(spec.suite.evaluation.limit)) for name in tasks]
    rows = [row for source, split in training for row in compare_splits(source, split, tests)]
    splits = [*training, *(("test", split) for split in tests)]
    digests = {f"{source} {split.task}": split.digest for source, split in splits}
    return Overlap(ngram=NGRAM, template=TEMPLATE, digests=digests, rows=tuple(rows))


@dataclass(frozen=True)
class Split:
    """The normalised prompts of a task's training or test split, and the digest of its documents."""

    task: str
    texts: Sequence[str]
    digest: str = ""

    @cached_property
    def hashes(self) -> list[bytes]:
        """SHA-256 of each prompt."""
        return [hashlib.sha256(text.encode()).digest() for text in self.texts]

    @cached_property
    def words(self) -> list[list[str]]:
        """The words of each prompt, without punctuation."""
        return [re.findall(r"\w+", text) for text in self.texts]


def read_split(task: Task, docs: Sequence[dict[str, Any]]) -> Split:
    """Return the documents' prompts as a split; its digest covers whole documents and does not depend on their order."""
    return Split(task.name, [normalised(task.prompt_text(doc)) for doc in docs], digest(sorted(map(digest, docs))))


def normalised(text: str) -> str:
    """Return a text in NFKC form, case-folded, with single spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def compare_splits(source: str, training: Split, tests: Sequence[Split]) -> Iterator[OverlapRow]:
    """Yield one row for each test set; the order of items makes no difference."""
    trained = set(training.hashes)
    tested = {ngram for test in tests for words in test.words for ngram in ngrams(words)}
    seen = _prompts_with(tested, training) if tested else Counter[Ngram]()
    # In a split of few prompts, an n-gram in more than half of them is a template.
    limit = min(TEMPLATE, max(1, len(trained) // 2))
    templates = {ngram for ngram, prompts in seen.items() if prompts > limit}
    for test in tests:
        shares = [share for words in test.words if (share := _share(words, seen.keys(), templates)) is not None]
        hits = [share for share in shares if share > 0]
        yield OverlapRow(
            source=source,
            trained_task=training.task,
            test_task=test.task,
            training_items=len(training.texts),
            test_items=len(test.texts),
            exact=sum(value in trained for value in test.hashes),
            ngram_items=len(hits),
            ngram_share_mean=round(sum(hits) / max(1, len(hits)), 4),
            too_short=len(test.texts) - len(shares),
        )


def ngrams(words: Sequence[str]) -> list[Ngram]:
    """Return all runs of 13 words."""
    return list(zip(*(words[start:] for start in range(NGRAM)), strict=False))


def _training_splits(spec: RunSpec, tasks: Mapping[str, Task], library: TaskLibrary) -> Iterator[tuple[str, Split]]:
    for stage in spec.stages:
        for task in (tasks[name] for name in stage.trains):
            yield f"stage {stage.index}", read_split(task, task.training_docs(stage.training.train_items))
    for before in spec.suite.origin.trained if spec.suite.origin else ():
        task = tasks[before.task] if before.task in tasks else library.loaded(before.task)
        yield "before the start", read_split(task, task.training_docs(before.items))
    student = spec.suite.student
    if isinstance(student, Scratch):
        limits = student.warmup.strengths[student.strength].items
        for name in student.warmup.mixture:
            task = tasks[name] if name in tasks else library.loaded(name)
            yield "warm-up", read_split(task, task.training_docs(limits.get(name)))


def _prompts_with(tested: set[Ngram], training: Split) -> Counter[Ngram]:
    """Count in how many distinct training prompts each n-gram occurs; repetitions of one prompt do not make a template."""
    distinct = dict(zip(training.hashes, training.words, strict=True)).values()
    return Counter(ngram for words in distinct for ngram in tested.intersection(ngrams(words)))


def _share(words: Sequence[str], seen: Set[Ngram], templates: Set[Ngram]) -> float | None:
    """Return the share of an item's own n-grams that are trained on; None for an item without any.

    An n-gram is the item's own if it contains no word of a template.
    """
    found = ngrams(words)
    covered = {start + i for start, ngram in enumerate(found) if ngram in templates for i in range(NGRAM)}
    own = [ngram for start, ngram in enumerate(found) if covered.isdisjoint(range(start, start + NGRAM))]
    return sum(ngram in seen for ngram in own) / len(own) if own else None
