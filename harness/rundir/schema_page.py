"""Write the field tables of docs/run-directory.md: `python -m harness.rundir.schema_page docs/run-directory.md`.

A table is between `<!-- fields of Manifest -->` and `<!-- end -->`; all other text of the page is written by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness.config.base import Record
from harness.rundir import schema
from harness.rundir.records import cell_records, overlap_record, training_records

TABLE = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def fill_tables(page: str) -> str:
    """Return a page in which each table lists the present fields of the record that it names."""
    modules = (overlap_record, cell_records, training_records, schema)
    records = {name: found for module in modules for name, found in vars(module).items()}
    return TABLE.sub(lambda found: f"{found[1]}{field_table(records[found[2]])}{found[3]}", page)


def field_table(record: type[Record]) -> str:
    """Return a record's fields as a Markdown table: the name in the file, and what it means."""
    rows = [
        f"| `{field.serialization_alias or name}` | {field.description or ''} |\n"
        for name, field in record.model_fields.items()
    ]
    return "".join(["| field | meaning |\n", "|---|---|\n", *rows])


def main() -> None:
    """Rewrite the tables of the pages named on the command line."""
    for path in map(Path, sys.argv[1:]):
        path.write_text(fill_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
