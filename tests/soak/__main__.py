"""`make soak`: every attack at full size; prints the table; fails where anything was lost, changed, silent or a traceback.

`python -m tests.soak --share 0.1` tries a tenth of each. `--page docs/reliability.md` writes the table there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from tests.soak.outcomes import Outcomes, as_table

FULL = {
    **{"kills": 50, "power cuts": 20, "unsynced files": 50, "full disks": 20, "teacher faults": 1000, "stages": 200},
    "served faults": 1000,
    **{"suites": 6000, "tasks": 1500, "runs": 1000, "models": 500, "commands": 1000},
}
MARKS = re.compile(r"(<!-- soak -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def main() -> int:
    """Attack, print the table, and return 1 where an attack succeeded."""
    options = argparse.ArgumentParser(prog="make soak")
    options.add_argument("--share", type=float, default=1.0, help="the part of each count that is tried")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="comma-separated names of attacks")
    options.add_argument("--page", type=Path, help="a page whose table is replaced")
    chosen = options.parse_args()
    counts = {name: max(2, round(count * chosen.share)) for name, count in FULL.items()}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ["HARNESS_CACHE"] = str(Path(folder) / "cache")
        found = _attack(counts, Path(folder), chosen.seed, [name for name in chosen.only.split(",") if name])
    minutes = (time.monotonic() - started) / 60
    command = f"python -m tests.soak --share {chosen.share:g} --seed {chosen.seed}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    run = f"`{command}` at commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes of wall clock."
    table = f"{run}\n\n{as_table(found)}"
    print(table)
    if chosen.page:
        page = chosen.page.read_text(encoding="utf-8")
        chosen.page.write_text(MARKS.sub(lambda match: f"{match[1]}{table}{match[2]}", page), encoding="utf-8")
    return int(any(outcomes.bad for outcomes in found))


def _attack(counts: dict[str, int], folder: Path, seed: int, only: list[str]) -> list[Outcomes]:
    import torch

    torch.set_num_threads(1)
    from harness.config.load import load_suite
    from harness.config.run_spec import RunSpec
    from harness.pipeline.run import run
    from tests.soak import full_disks, kills, many_stages, mutations, power_cuts, served_faults, unsynced
    from tests.support.models import micro_suite, write_yaml

    file = write_yaml(folder / "micro.yaml", micro_suite())
    suite = load_suite(str(file), ["snapshot_minutes=0", "student.seed=0"])
    spec = RunSpec(suite, "aopd", 0, out=folder / "runs")

    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    def model() -> Path:
        run(spec)
        return next((Path(os.environ["HARNESS_CACHE"]) / "models").glob("weak-*/"))

    attacks: dict[str, Callable[[], Outcomes]] = {
        "kills": lambda: kills.kill_runs(spec, place("kills"), counts["kills"], seed),
        "power cuts": lambda: power_cuts.cut_power(spec, place("cuts"), counts["power cuts"], seed),
        "unsynced files": lambda: unsynced.drop_unsynced(spec, place("unsynced"), counts["unsynced files"], seed),
        "full disks": lambda: full_disks.fill_disks(spec, place("disks"), counts["full disks"], seed),
        "teacher faults": lambda: _teacher_faults(counts["teacher faults"], seed),
        "served faults": lambda: served_faults.break_answers(place("served"), counts["served faults"], seed),
        "suites": lambda: mutations.mutate_suites(place("suites"), counts["suites"], seed),
        "tasks": lambda: mutations.mutate_tasks(place("tasks"), counts["tasks"], seed),
        "runs": lambda: mutations.mutate_runs(run(spec), place("copies"), counts["runs"], seed),
        "models": lambda: mutations.mutate_models(model(), place("models"), counts["models"], seed),
        "commands": lambda: mutations.mutate_commands(run(spec), place("commands"), counts["commands"], seed),
        "stages": lambda: many_stages.train_many(spec, place("stages"), counts["stages"]),
    }
    found: list[Outcomes] = []
    mounts = power_cuts.can_mount(place("mount"))
    for name, attack in attacks.items():
        if only and name not in only:
            continue
        if name in ("power cuts", "full disks") and not mounts:
            print(f"{name}: this process may not mount loop devices, so none is tried", file=sys.stderr)
            continue
        begun = time.process_time()
        found.append(attack())
        print("".join(f"{name}: {line[:600]}\n" for line in found[-1].details), end="", file=sys.stderr)
        last = found[-1]
        print(
            f"{last.attack}: tried {last.tried}, bad {last.bad}, {time.process_time() - begun:.0f} CPU s",
            file=sys.stderr,
        )
    return found


def _teacher_faults(count: int, seed: int) -> Outcomes:
    from tests.support.servers.teacher_faults import try_fault

    found = Outcomes("teacher faults", "a training step with one fault in the teacher's answer; some cannot be known.")
    for number in range(count):
        outcome, name, fault = try_fault(seed + number)
        found.add(outcome, f"{name}: {fault}")
    found.note = f"{found.counts['undecidable']} agree with themselves, which no check can tell."
    return found


if __name__ == "__main__":
    sys.exit(main())
