"""A process of a run over several nodes, started by torchrun: `python -m harness.pipeline.sweeps.node_process FOLDER`.

All nodes see the folder. It holds the run's specification. The first process writes the run's events there, and the error
that ended it, with whether a signal had asked the run to end.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from harness.config.run_spec import RunSpec
from harness.errors import HarnessError, StoppedError
from harness.rundir.process.progress import Event

SPEC, EVENTS, ERROR = "spec", "events", "error"


def main(folder: Path) -> int:
    """Do the run as the first process, or train with the first process; return the exit status."""
    from harness.pipeline.processes.launched_ranks import follow_first_process, leading, this_launch
    from harness.pipeline.run import run

    if this_launch().rank:
        follow_first_process()
        return 0
    spec: RunSpec = pickle.loads((folder / SPEC).read_bytes())
    with (folder / EVENTS).open("ab") as events:

        def report(event: Event) -> None:
            events.write(pickle.dumps(event))
            events.flush()

        try:
            with leading():
                run(spec, report)
        except HarnessError as error:
            partial = folder / f".{ERROR}"
            stopped = isinstance(error.__cause__, StoppedError)
            # No class of this module: it is `__main__` here, and has another name where the error is read.
            partial.write_bytes(pickle.dumps((type(error)(str(error)), stopped)))
            partial.replace(folder / ERROR)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
