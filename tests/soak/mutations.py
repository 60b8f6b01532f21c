"""Seeded mutations of everything that a user writes or passes on: suites, tasks, records, runs, model folders, command lines.

Each must be taken or refused in one sentence; another exception is a traceback. A finished run has one right content, so a
change of it that nobody names is silent.
"""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from harness.cli.app import main
from harness.config.load import load_suite
from harness.errors import HarnessError
from harness.lm.chat import Renderer
from harness.lm.checkpoints import (
    check_weights,
    checkpoint_digests,
    config_digest,
    context_of,
    load_renderer,
    weights_digest,
)
from harness.lmeval.library import TaskLibrary
from harness.lmeval.trial import try_task
from harness.rundir.integrity import find_faults
from harness.rundir.reader import find_runs
from tests.soak.outcomes import Outcomes
from tests.support.models import DOCS, TASK_FILE, byte_renderer, micro_suite, write_task

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        3.5,
        10**30,
        float("inf"),
        float("nan"),
        "",
        " ",
        "x",
        "../x",
        "a/b",
        "\x1b[2J",
        "é\u2028",
    ),
    *(
        [],
        {},
        [None],
        [[]],
        {"": 0},
        {"a": {"b": []}},
        "yes",
        "1e400",
        "null",
        "{{ x }}",
        "{% for %}",
        "!function a.b",
        2**63,
    ),
)
TIMED_OUT = "did not end"
Attempt = Callable[[random.Random, Path], str]


def mutate(value: Any, draw: random.Random) -> Any:
    """Return a copy of a JSON-like value with one place of it changed, removed, doubled or filled with an odd value."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return draw.choice(ODD)
    holder, key = draw.choice(places)
    action = draw.choice(("set", "set", "remove", "wrap", "rename", "swap"))
    if action == "set":
        holder[key] = copy.deepcopy(draw.choice(ODD))
    elif action == "remove":
        del holder[key]
    elif action == "wrap":
        holder[key] = draw.choice(([holder[key]], {"x": holder[key]}, [holder[key], holder[key]]))
    elif action == "rename" and isinstance(holder, dict):
        holder[draw.choice((f"{key}x", str(key).upper(), "", " ", 7))] = holder.pop(key)
    else:
        other, place = draw.choice(places)
        holder[key] = copy.deepcopy(other[place]) if other is not holder or place != key else None
    return value


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with a few of them changed, removed, doubled, or cut off."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(found) + 1)
        end = min(len(found), start + draw.choice((1, 1, 8, 100)))
        action = draw.choice(("flip", "remove", "insert", "double", "cut"))
        if action == "flip" and found:
            found[start % len(found)] ^= 1 << draw.randrange(8)
        elif action == "remove":
            del found[start:end]
        elif action == "insert":
            found[start:start] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
        elif action == "double":
            found[start:start] = found[start:end]
        else:
            del found[start:]
    return bytes(found)


def outcome_of(attempt: Callable[[], Any]) -> tuple[str, str]:
    """Return how an attempt ends: taken, refused in one sentence, or a traceback, with the message."""
    try:
        attempt()
    except HarnessError as error:
        return ("refused", "") if "\n" not in str(error) else ("traceback", f"several lines: {error}")
    except OSError as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "taken", ""


def mutate_suites(folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Mutate the micro suite as a value and as text, and read it."""
    found, file = (
        Outcomes("suites", "a suite with one place changed, or its text with some bytes, is read"),
        folder / "s.yaml",
    )
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        raw = micro_suite()
        for _ in range(draw.choice((1, 1, 2))):
            raw = mutate(raw, draw)
        content = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True).encode(errors="replace")
        file.write_bytes(content if number % 2 else mutate_bytes(content, draw))
        result, said = outcome_of(lambda: load_suite(str(file)))
        found.add(result, f"suite {number}: {said}")
    return found


def mutate_tasks(folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Mutate a task file, or the records that it reads, load it and try one item of it."""
    found, renderer = (
        Outcomes("tasks and records", "a task file or its records changed, loaded and one item tried"),
        byte_renderer(),
    )
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        place = folder / f"tasks-{number}"
        if number % 2:
            write_task(place, docs=_with_text_splits(mutate(DOCS, draw)))
        else:
            write_task(place, **_mutated_task(draw))
        result, said = outcome_of(lambda place=place: _try_made_up(place, renderer))
        found.add(result, f"task {number}: {said}")
        shutil.rmtree(place)
    return found


def mutate_runs(run: Path, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Mutate one vouched file of a copy of a finished run; a change that `harness runs verify` does not name is silent."""
    found = Outcomes(
        "run directories", "one file of a finished run changed; silent: its content differs and nothing is named"
    )
    copied = shutil.copytree(run, folder / "run")
    files = [path for path in sorted(copied.rglob("*")) if path.is_file() and _vouched(path)]
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        file = draw.choice(files)
        before = file.read_bytes()
        after = _mutated_file(file, draw, in_its_structure=bool(number % 2))
        file.write_bytes(after)
        faults: list[Any] = []
        result, said = outcome_of(
            lambda faults=faults: faults.extend(find_faults(find_runs([copied])[0], checkpoint_digests))
        )
        if result == "taken":
            same = before == after or (file.suffix == ".json" and _json_of(after) == _json_of(before))
            result = "refused" if faults else "taken" if same else "silent"
        found.add(result, f"run {number}: {file.relative_to(copied)}: {said}")
        file.write_bytes(before)
    shutil.rmtree(copied)
    return found


def mutate_models(model: Path, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Mutate a file of a copy of a checkpoint, and read all of it."""
    found = Outcomes(
        "model folders", "one file of a checkpoint changed, then configuration, tokenizer and weights are read"
    )
    copied = shutil.copytree(model, folder / "model")
    files = [path for path in sorted(copied.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        file = draw.choice(files)
        before = file.read_bytes()
        file.write_bytes(_mutated_file(file, draw, in_its_structure=bool(number % 2)))
        result, said = outcome_of(lambda: _read_model(copied))
        found.add(result, f"model {number}: {file.name}: {said}")
        file.write_bytes(before)
    shutil.rmtree(copied)
    return found


def mutate_commands(run: Path, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Call the command line with words exchanged, doubled, left out or odd, in this process."""
    found = Outcomes(
        "command lines", "words of a command exchanged, doubled, left out or odd; a traceback is an unforeseen error"
    )
    commands: tuple[Sequence[str], ...] = (
        ("suites",), ("adapters",), ("adapters", "show", "opd"), ("tasks",), ("watch", str(run), "--once"),
        ("runs", "verify", str(run)), ("compare", str(run), str(run)), ("compare", str(run), "--stage", "1,2"),
        ("report", str(folder / "nothing"), "--out", str(folder / "r")), ("regrade", str(folder / "nothing")),
        ("run", "tiny", "--adapter", "nobody", "--seed", "0"), ("sweep", "tiny", "--seed", "0,x", "--workers", "0"),
        ("run", "tiny", "--set", "training.steps=none"), ("study", "nothing"), ("evaluate", "--suite", "tiny"),
    )  # fmt: skip
    for number in range(count):
        draw = random.Random(f"{seed}-{number}")
        words = [word for word in _mutated_words(list(draw.choice(commands)), draw) if "\0" not in word]
        if words[:1] in (["run"], ["sweep"], ["study"]) and "nobody" not in words:
            words += ["--set", "no.such.key=1"]  # nothing may train here
        result, said = _call(words)
        found.add(result, f"command {number}: {words}: {said}")
    return found


def _call(words: list[str]) -> tuple[str, str]:
    before, output = sys.argv, io.StringIO()
    sys.argv = ["harness", *words]
    try:
        with redirect_stdout(output), redirect_stderr(output):
            main()
    except SystemExit as end:
        text = output.getvalue()
        if "probably a bug of the harness" in text or "Traceback" in text:
            return "traceback", text[-300:]
        return ("refused" if end.code else "taken"), ""
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        sys.argv = before
    return "taken", ""


def _mutated_words(words: list[str], draw: random.Random) -> list[str]:
    odd = (
        "",
        "-",
        "--",
        "--set",
        "--set=a",
        "x=y",
        "../x",
        "\x1b[2J",
        "é\u2028",
        "9" * 40,
        "[/bold]",
        "--out",
        "--seed",
        "-1",
    )
    place = draw.randrange(len(words))
    action = draw.choice(("odd", "remove", "double", "swap", "insert"))
    if action == "odd":
        words[place] = draw.choice(odd)
    elif action == "remove" and len(words) > 1:
        del words[place]
    elif action == "double":
        words.insert(place, words[place])
    elif action == "swap":
        other = draw.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    else:
        words.insert(place + 1, draw.choice(odd))
    return words


def _mutated_task(draw: random.Random) -> dict[str, Any]:
    changed = mutate(TASK_FILE, draw)
    missing = dict.fromkeys(name for name in TASK_FILE if name not in changed)
    return {
        **missing,
        **{str(name): value for name, value in changed.items() if str(name) not in ("task", "folder", "name")},
    }


def _with_text_splits(docs: Any) -> Any:
    return {str(name): part for name, part in docs.items()} if isinstance(docs, dict) else docs


def _try_made_up(folder: Path, renderer: Renderer) -> None:
    try_task(TaskLibrary([folder]).load("made_up"), renderer)


def _read_model(folder: Path) -> None:
    from harness.config.models import Chat, Pretrained

    for read in (config_digest, context_of, weights_digest):
        read(folder)
    load_renderer(folder, Pretrained(kind="pretrained", path=str(folder), chat=Chat(template="chatml")))
    check_weights(folder)


def _vouched(path: Path) -> bool:
    return path.suffix in (".json", ".jsonl", ".parquet", ".safetensors") and "tokenizer_config" not in path.name


def _mutated_file(file: Path, draw: random.Random, in_its_structure: bool) -> bytes:
    """Return a file's content with one change: in its bytes, or in the structure of its JSON where it has one."""
    content = file.read_bytes()
    value = _json_of(content) if file.suffix == ".json" else None
    if value and in_its_structure:
        return json.dumps(mutate(value, draw), default=str).encode()
    return mutate_bytes(content, draw)


def _json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found += [(value, key), *_places(value[key])]
    return found
