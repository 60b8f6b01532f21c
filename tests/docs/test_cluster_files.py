"""The files for SLURM and KubeRay in docs/scale-out.md: the first one is run with stand-ins, the second one is read."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import parse_args

PAGE = (Path(__file__).parents[2] / "docs" / "scale-out.md").read_text(encoding="utf-8")
# What the job calls. `harness` answers SIGTERM as a sweep does: it ends after a while, when the snapshots are there.
STANDS_IN = {
    "srun": "exit 0",
    "sleep": "exit 0",
    "scontrol": 'if [ "$1" = show ]; then echo node1; else echo "$*" >> "$EVENTS"; fi',
    "harness": """
        trap '/bin/sleep 1; echo snapshot >> "$EVENTS"; exit 1' TERM
        until grep -q '^State:.S' /proc/$PPID/status; do /bin/sleep 0.02; done  # the job waits for this process
        echo "$*" >> "$EVENTS"
        [ -z "$ENDS" ] || exit "$ENDS"
        while :; do /bin/sleep 0.02; done
    """,
}


def block(heading: str, language: str) -> str:
    """Return the first block of a language under a heading of the page."""
    (section,) = (part for part in re.split(r"^#+ ", PAGE, flags=re.MULTILINE) if part.startswith(f"{heading}\n"))
    found = re.search(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def job(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """The command of the SLURM job and its environment."""
    installed = tmp_path / "continual-harness" / ".venv" / "bin"
    installed.mkdir(parents=True)
    for name, text in STANDS_IN.items():
        program = (installed if name == "harness" else tmp_path) / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    (installed / "activate").write_text(f'PATH="{installed}:$PATH"\n')
    clone, shared = "/shared/continual-harness", block("SLURM", "bash")
    assert clone in shared
    (tmp_path / "job.sh").write_text(shared.replace(clone, str(tmp_path / "continual-harness")))
    variables = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NNODES": "4", "ENDS": ""}
    path = f"{tmp_path}:/usr/bin:/bin"
    return ["bash", str(tmp_path / "job.sh")], {**variables, "PATH": path, "EVENTS": str(tmp_path / "events")}


def events(environment: dict[str, str]) -> list[str]:
    """Return what the stand-ins wrote, in order."""
    path = Path(environment["EVENTS"])
    return path.read_text().splitlines() if path.exists() else []


def test_the_torchrun_command_leaves_half_an_hour_for_a_step_and_a_snapshot():
    command = re.search(r"^torchrun (.*)\\\n(.*)$", PAGE, flags=re.MULTILINE)
    assert command
    timeout = parse_args(" ".join(command.groups()).split()).shutdown_timeout  # torchrun's own default is 30 seconds
    assert timeout is not None
    assert timeout >= 1800


SWEEP = "sweep my-suite.yaml --ray node1:6379 --out /shared/runs"


def test_a_slurm_job_waits_for_the_snapshots_and_goes_back_into_the_queue(job: tuple[list[str], dict[str, str]]):
    command, environment = job
    assert re.search(r"^#SBATCH .*--requeue .*--signal=B:TERM@\d+", block("SLURM", "bash"), flags=re.MULTILINE)
    process = subprocess.Popen(command, env=environment)
    try:
        while not events(environment):
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()  # SLURM signals the batch shell alone (`B:`)
        process.wait(timeout=60)
    finally:
        process.kill()
    assert events(environment) == [SWEEP, "snapshot", "requeue 77"]


@pytest.mark.parametrize("status", [0, 3])
def test_a_slurm_job_whose_sweep_ends_does_so_with_its_status(status: int, job: tuple[list[str], dict[str, str]]):
    command, environment = job
    assert subprocess.run(command, env={**environment, "ENDS": str(status)}, timeout=60).returncode == status
    assert events(environment) == [SWEEP]


def test_the_workers_of_the_kuberay_file_have_gpus_and_all_pods_share_the_runs_and_the_models():
    spec: dict[str, Any] = yaml.safe_load(block("Kubernetes", "yaml"))
    assert (spec["apiVersion"], spec["kind"]) == ("ray.io/v1", "RayJob")
    cluster = spec["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    head, worker = (group["template"]["spec"] for group in (cluster["headGroupSpec"], workers))
    assert int(worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) >= 1
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for pod in (head, worker):
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
        shared = [entry["value"] for entry in container["env"]]
        shared += [word for word in spec["spec"]["entrypoint"].split() if word.startswith("/")]
        assert len(shared) == 3
        assert all(place.startswith(f"{mount['mountPath']}/") for place in shared)
