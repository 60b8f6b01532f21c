"""Documents of a task, as lm-eval has them: read a few, name one by its content, and fill a field or a template from one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from jinja2 import TemplateSyntaxError
from lm_eval.utils import apply_template, handle_non_serializable, hash_string

from harness.errors import TaskError

BATCH = 1000  # documents that are read at a time


def read_docs(docs: Any, limit: int | None) -> list[dict[str, Any]]:
    """Return the first documents; a `Dataset` gives them in batches, because it takes long to give them one by one."""
    count = min(limit or len(docs), len(docs))
    if not isinstance(docs, Dataset) or docs.format["type"] is not None:
        return [dict(doc) for _, doc in zip(range(count), docs, strict=False)]
    batches = (docs[start : min(start + BATCH, count)] for start in range(0, count, BATCH))
    return [dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)]


def fill_field(field: str, doc: Mapping[str, Any]) -> Any:
    """Return a document's field, or a Jinja template filled from it."""
    try:
        if field in doc:
            return doc[field]
        return apply_template(field, dict(doc))
    except (TypeError, TemplateSyntaxError) as error:
        # Neither a name nor a template; missing fields are found elsewhere.
        raise TaskError(
            f"metadata.harness names {field!r}, expected a field of the records ({', '.join(doc)}) or a template ({error})"
        ) from error


def item_id(doc: Mapping[str, Any]) -> str:
    """Return a stable id of a document, from its content: the hash that lm-eval logs as `doc_hash`."""
    return hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False))
