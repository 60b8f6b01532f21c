"""Power cuts without a device: after a call of fsync, a disk that holds only what was synced so far is rebuilt.

It is stricter than ext4: a file has the content of its own last fsync, a folder the names of its own. It needs no root.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from harness.config.run_spec import RunSpec
from tests.soak.forked_runs import go_on, start_run
from tests.soak.outcomes import Outcomes

COUNTED = "what was synced before a random fsync of a run, then the same command; compared as for kills."
CUT = 9  # exit code


@dataclass
class Synced:
    """What is on the disk: content by inode of a file, names with inode and kind by inode of a folder."""

    root: Path
    files: dict[int, bytes] = field(default_factory=dict[int, bytes])
    folders: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict[int, dict[str, tuple[int, bool]]])
    calls: int = 0

    def note(self, descriptor: int) -> None:
        """Take up a file's content or a folder's names as they are now."""
        status, path = os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}").resolve()
        self.calls += 1
        if stat.S_ISDIR(status.st_mode):
            entries = [(entry.name, entry.inode(), entry.is_dir()) for entry in os.scandir(path)]
            self.folders[status.st_ino] = {name: (inode, is_dir) for name, inode, is_dir in entries}
        else:
            self.files[status.st_ino] = path.read_bytes()

    def rebuild(self, target: Path, inode: int) -> None:
        """Write the folder of an inode as the disk holds it; what was never synced is empty."""
        target.mkdir(parents=True, exist_ok=True)
        for name, (below, is_dir) in self.folders.get(inode, {}).items():
            if is_dir:
                self.rebuild(target / name, below)
            else:
                (target / name).write_bytes(self.files.get(below, b""))


def watch_syncs(root: Path, target: Path, stop: int | None) -> None:
    """Note every fsync of this process; at call `stop` leave what is on the disk at `target` and end, at None count them."""
    synced, fsync = Synced(root), os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.note(descriptor)
        if stop is None:
            target.write_text(str(synced.calls))
        elif synced.calls == stop:
            synced.rebuild(target, root.stat().st_ino)
            os._exit(CUT)

    os.fsync = noted


def drop_unsynced(spec: RunSpec, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Cut `count` runs of a spec at random calls of fsync, and continue each from what was synced."""
    draw, found = random.Random(seed), Outcomes("unsynced files", COUNTED)
    undisturbed, errors, calls = replace(spec, out=folder / "undisturbed"), folder / "errors.txt", folder / "calls"
    undisturbed.out.mkdir()
    process = start_run(undisturbed, errors, partial(watch_syncs, undisturbed.out, calls, None))
    process.join()
    assert process.exitcode == 0, errors.read_text()
    for number in range(count):
        own, kept = replace(spec, out=folder / "own"), replace(spec, out=folder / "kept")
        own.out.mkdir()
        process = start_run(
            own, errors, partial(watch_syncs, own.out, kept.out, draw.randint(1, int(calls.read_text())))
        )
        process.join()
        kept.out.mkdir(exist_ok=True)
        result, said = go_on(kept, undisturbed, errors)
        found.add(result, f"cut {number}: {said}")
        shutil.rmtree(own.out)
        shutil.rmtree(kept.out)
    return found
