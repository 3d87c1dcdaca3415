"""Processes with eight virtual devices, for what a test's own process has one of."""

import os
import subprocess
import sys
from pathlib import Path


def with_eight_devices(file: str, *codes: str) -> list[str]:
    """The last line that each piece of code prints, all at a time; they can import the file."""
    path = os.pathsep.join((str(Path(file).parent), str(Path(__file__).parents[1])))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code in codes
    ]
    found = []
    for process in processes:
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-2000:]
        found.append(out.splitlines()[-1])
    return found
