r"""math-verify's verdict on an answer, from a separate process that is ended when it takes too long.

math-verify calculates with sympy, which never ends on `9^{9^{9^9}}`, and guards itself by `signal.alarm`, which a main
thread alone may use. So `verdict_worker.py` asks it: one process that lives through many questions, is ended by the
kernel's timer at the limit, and is replaced. It is a plain subprocess because multiprocessing, and pools built on it,
refuse children to daemonic workers and run an unguarded `__main__` again.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from harness.errors import TaskError

SECONDS = 5.0
SCRIPT = Path(__file__).with_name("verdict_worker.py")


def same(gold: str, answer: str, seconds: float = SECONDS) -> bool | None:
    """Say whether an answer equals the reference; None where `seconds` of processor time or the memory did not suffice.

    Works on any thread, and in forked, spawned and daemonic processes, each of which has its own worker.
    Raises `TaskError` where math-verify cannot be started.
    """
    return _JUDGE.ask(json.dumps({"gold": gold, "answer": answer, "seconds": seconds}).encode() + b"\n")


class _Judge:
    """The worker of this process, for all its threads: started at the first question, replaced when it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: bytes) -> bool | None:
        with self._lock:
            # A worker that something else killed says nothing about this question, so a second one is asked.
            for _ in range(2):
                if reply := self._reply(question):
                    return json.loads(reply)
                if (status := self.end()) in (-signal.SIGPROF, -signal.SIGALRM):
                    break
                if status > 0:
                    raise TaskError(
                        f"math-verify's process ended with status {status}, its error is above; "
                        f"reinstall the harness's dependencies for {sys.executable}"
                    )
            return None

    def end(self) -> int:
        """Kill the worker, if there is one, and return how it ended: a negative number is a signal's."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        _close_pipes(process)
        return process.wait()

    def leave(self) -> None:
        """Leave the worker to the parent process, whose child it is, and let go of its pipes."""
        if self._process is not None:
            _close_pipes(self._process)
            self._process.returncode = 0  # So that nobody waits here for what is not this process's child.

    def _reply(self, question: bytes) -> bytes:
        """Return the worker's line, or nothing when it has died."""
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while question:
                question = question[os.write(process.stdin.fileno(), question) :]
            return process.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:
            # An interrupt leaves a question open, and the next one would be given its verdict.
            self.end()
            raise


def _start() -> subprocess.Popen[bytes]:
    # Without buffers a fork has nothing half written to inherit; -P keeps this folder's modules out of the worker's way.
    command = [sys.executable, "-P", str(SCRIPT)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _forget() -> None:
    """Start a new worker in a forked child: with the parent's pipes it would read the parent's verdicts."""
    global _JUDGE
    _JUDGE.leave()
    _JUDGE = _Judge()


_JUDGE = _Judge()
os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _JUDGE.end())
