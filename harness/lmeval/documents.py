"""Documents of a task, as lm-eval has them: read the first ones, compute an id, and fill a field or template from one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from jinja2 import TemplateSyntaxError
from lm_eval.utils import apply_template, handle_non_serializable, hash_string

from harness.errors import TaskError

BATCH = 1000  # documents read at a time


def read_docs(docs: Any, limit: int | None) -> list[dict[str, Any]]:
    """Return the first `limit` documents, all for None; a `Dataset` is read in batches, because single rows are slow."""
    count = min(limit or len(docs), len(docs))
    if not isinstance(docs, Dataset) or docs.format["type"] is not None:
        return [dict(doc) for _, doc in zip(range(count), docs, strict=False)]
    batches = (docs[start : min(start + BATCH, count)] for start in range(0, count, BATCH))
    return [dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)]


def fill_field(field: str, doc: Mapping[str, Any]) -> Any:
    """Return a document's field, or a Jinja template filled from the document; raises `TaskError` for anything else."""
    try:
        if field in doc:
            return doc[field]
        return apply_template(field, dict(doc))
    except (TypeError, TemplateSyntaxError) as error:
        # Neither a name nor a template; `harness.lmeval.records` checks for missing fields.
        raise TaskError(
            f"metadata.harness names {field!r}, expected a field of the records ({', '.join(doc)}) or a template ({error})"
        ) from error


def item_id(doc: Mapping[str, Any]) -> str:
    """Return the hash of a document's content that lm-eval logs as `doc_hash`: a stable id."""
    return hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False))
