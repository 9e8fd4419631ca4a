"""What the numbers depend on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import rlm_containers
from bench_rlm.engine import Engine

__all__ = ["facts"]


def facts(engine: Engine, image: str, shim: str) -> dict[str, str]:
    """The machine, the engine and the versions, by name."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{os.cpu_count()} cores ({_processor()}), {_memory()}, "
        f"load average {' '.join(f'{load:.2f}' for load in os.getloadavg())}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "engine": str(engine),
        "image": f"`{image}`, Python {engine.python_version(image)}",
        "host's Python": platform.python_version(),
        "rlms": version("rlms"),
        "rlm-containers": f"{rlm_containers.__version__}{_commit()}",
        "between rlms and the engine": shim,
    }


def _commit() -> str:
    """Which version of the sources it is, where they are a git checkout."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(
            describe, check=False, cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


def _processor() -> str:
    return _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown"


def _memory() -> str:
    kilobytes = _first("/proc/meminfo", "MemTotal").split(" ")[0]
    return f"{int(kilobytes) / 1024**2:.0f} GiB" if kilobytes.isdigit() else "memory unknown"


def _first(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
