"""Start the servers of teachers once for all runs of a command, and give the runs the servers' addresses."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from harness.adapter import uses_teacher
from harness.config.base import digest
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.config.teacher_settings import TeacherSpec
from harness.pipeline.processes.started_servers import started_servers
from harness.rundir.process.progress import Event, Report
from harness.teachers.server import Server
from harness.teachers.teacher import TeacherKind


@contextmanager
def started_teachers(specs: Sequence[RunSpec], report: Report) -> Generator[list[RunSpec]]:
    """Start the servers that the runs' teachers name under `start`, equal ones once, and yield the runs with their addresses.

    Runs that use no teacher are yielded as they are. The servers end with the block.
    """
    with ExitStack() as stack:
        known: dict[str, Server] = {}

        def served(server: Server) -> Server:
            key = digest(server.model_dump(mode="json"))
            if key not in known:
                assert server.start is not None
                folder = specs[0].out / specs[0].suite.name / "teacher_servers" / key
                report(Event(label := f"teacher {server.model}", "start"))
                asked = (server.start, server.model, server.revision, server.max_logprobs, folder)
                urls = stack.enter_context(
                    started_servers(*asked, lambda sentence: report(Event(label, sentence, warning=True)))
                )
                report(Event(label, "started", 1, 1, finished=True))
                known[key] = server.model_copy(update={"urls": urls, "start": None})
            return known[key]

        yield [
            _with_addresses(spec, served) if any(uses_teacher(spec, stage) for stage in spec.stages) else spec
            for spec in specs
        ]


def gpus_of_teachers(suite: Suite) -> set[str]:
    """Return the GPUs that the suite's started teachers take, as CUDA_VISIBLE_DEVICES names them."""
    named: set[str] = set()

    def note(server: Server) -> Server:
        assert server.start is not None
        named.update(gpu for gpus in server.start.gpus for gpu in gpus.split(","))
        return server

    for teacher in (suite.teacher, *(stage.teacher for stage in suite.stages)):
        _placed(teacher, note)
    return named


def _with_addresses(spec: RunSpec, served: Any) -> RunSpec:
    suite = spec.suite
    stages = tuple(
        stage.model_copy(update={"teacher": _placed(stage.teacher, served)}) if stage.teacher else stage
        for stage in suite.stages
    )
    changed = suite.model_copy(update={"teacher": _placed(suite.teacher, served), "stages": stages})
    return replace(spec, suite=changed)


def _placed(teacher: TeacherSpec | None, served: Any) -> TeacherSpec | None:
    return teacher.with_servers(served) if isinstance(teacher, TeacherKind) else teacher
