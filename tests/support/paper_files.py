"""Small made-up files in the layout of the paper's hub repositories, as a download of them has it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_paper_data(folder: Path, items: int = 3) -> dict[str, str]:
    """Write `items` sums per repository with its own file and column names, and return the suite's `data`."""
    sums = [(f"What is {n} + {n}?", str(2 * n)) for n in range(1, items + 1)]
    rows: dict[tuple[str, str], Sequence[dict[str, Any]]] = {
        ("aime24", "train"): [{"ID": q, "Problem": f"{q} (a)", "Solution": "", "Answer": int(a)} for q, a in sums],
        ("aime25", "test"): [{"problem": f"{q} (b)", "answer": a, "id": q} for q, a in sums],
        ("hmmt_feb25", "train"): [{"problem_idx": 1, "problem": f"{q} (c)", "answer": a} for q, a in sums],
        ("amc23", "test"): [{"id": 0, "question": f"{q} (d)", "answer": float(a)} for q, a in sums],
        ("math500", "test"): [{"problem": f"{q} (e)", "solution": rf"\boxed{{{a}}}", "answer": a} for q, a in sums],
        ("deepmath", "train"): [
            {"question": f"{q} (f)", "final_answer": a, "difficulty": 1.0, "r1_solution_1": f"Add: {a}"}
            for q, a in sums
        ],
        ("openthoughts", "train"): [
            _conversation("math", r"<think>2 + 2</think> It is \boxed{4}."),
            _conversation("code", r"<think>2 + 2</think> It is \boxed{4}."),
            _conversation("math", r"<think>2 + 2 is \boxed{4}"),
            _conversation("math", "<think>2 + 2</think> It is 4."),
        ],
    }
    for (name, split), records in rows.items():
        (folder / name).mkdir(parents=True)
        (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    return {name: str(folder / name) for name, _ in rows}


def _conversation(domain: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": answer}]
    return {"difficulty": 1, "source": "made up", "domain": domain, "conversations": turns}


CATEGORIES = ("Anime", "Business", "Data Validation")  # one of each tool stage


def write_tool_data(folder: Path, items: int = 3) -> dict[str, str]:
    """Write `items` made-up ToolAlpaca rows per tool stage to train on and to test, and return the suite's `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("toolalpaca_train", "toolalpaca_eval"):
        rows = [_tool_row(category, n, name) for category in CATEGORIES for n in range(items)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return {name: str(folder / f"{name}.json") for name in ("toolalpaca_train", "toolalpaca_eval")}


def _tool_row(category: str, number: int, part: str) -> dict[str, Any]:
    call = {"Action": "find", "Action_Input": json.dumps({"id": number})}
    return {
        "api": f"{category} API",
        "category": category,
        "prompt": f"{part}: find number {number} of {category}.",
        "golden_answer": [call],
    }
