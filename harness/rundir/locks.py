"""Locks between processes: wait for one, ask whether it is held, and refuse a file system without locks."""

from __future__ import annotations

import errno
import fcntl
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import InUseError, RunError

# An evaluation of a large model holds its lock for hours; a process that holds one for longer hangs. A training may take days.
LONGEST_WAIT = 24 * 3600.0  # seconds
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)


@contextmanager
def waiting_lock(path: Path, announce: Callable[[], object] | None = None) -> Generator[None]:
    """Hold the lock file `path` in the block, after waiting up to LONGEST_WAIT for another process that holds it.

    With `announce`, which is called before a wait, there is no limit: the lock of a process that ends is free. Raises
    `RunError` after the limit, and on a file system without flock, where filelock would wait for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_without_flock(path.parent)
    lock = FileLock(path, timeout=LONGEST_WAIT)
    try:
        if announce is None:
            lock.acquire()
        else:
            _acquire_at_last(lock, announce)
    except Timeout as error:
        raise RunError(
            f"{path} is held by another process, for more than {LONGEST_WAIT:g} seconds now; find that process (fuser "
            f"{path}) and end it if it hangs"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquire_at_last(lock: FileLock, announce: Callable[[], object]) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        announce()
        lock.acquire(timeout=-1)


@contextmanager
def first_free_lock(paths: Sequence[Path]) -> Generator[Path]:
    """Hold the first of the lock files that no other process holds; where all are held, wait for the first of them."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    refuse_without_flock(paths[0].parent)
    for path in paths:
        lock = FileLock(path, timeout=0)
        with suppress(Timeout):
            lock.acquire()
        if lock.is_locked:
            try:
                yield path
            finally:
                lock.release()
            return
    with waiting_lock(paths[0]):
        yield paths[0]


@contextmanager
def free_lock(path: Path) -> Generator[None]:
    """Hold the lock file `path` in a run's folder in the block; raises `InUseError` where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_without_flock(path.parent)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUseError(f"{path.parent} is in use by another process; wait for it or choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file `path`; True where that cannot be known.

    The check takes a shared lock for a moment, so call it only where no process is about to take the lock.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def refuse_without_flock(folder: Path) -> None:
    """Raise `RunError` where the file system of a folder does not have flock."""
    # The probe is a separate file, because a lock on the real one, however short, could refuse another process.
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            raise RunError(
                f"the file system of {folder} has no file locks ({error.strerror}), so two processes could write the same "
                "files; use a folder on another file system (--out for runs, HARNESS_CACHE for models)"
            ) from error
