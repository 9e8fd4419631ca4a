"""Why a build failed, read from its log."""

from __future__ import annotations

import re

from rlm_containers.errors import ImageBuildError

#: Lines of the log that an error shows.
_SHOWN = 20

# What pip, apt-get, apk, dnf and zypper say, with the package in it. The first found counts.
_CAUSES: tuple[tuple[str, str], ...] = (
    (r"No matching distribution found for (?P<name>\S+)", "pip finds no {name} that fits"),
    (r"Invalid requirement: (?P<name>.+)", "pip cannot read the requirement {name}"),
    (r"Cannot install (?P<name>.+?) because these", "{name} contradict each other"),
    (r"pyproject\.toml based projects \((?P<name>[^)]+)\)", "{name} does not build"),
    (r"Failed (?:building wheel|to build) (?:for )?(?P<name>[^\s(]+)", "{name} does not build"),
    (r"E: Unable to locate package (?P<name>\S+)", "apt-get knows no {name}"),
    (r"E: Package '(?P<name>[^']+)' has no installation", "apt-get has no {name} to install"),
    (r"E: Version '[^']+' for '(?P<name>[^']+)' was not", "apt-get has no such version of {name}"),
    (r"^\s*(?:[#\d. ]+)?(?P<name>\S+) \(no such package\)", "apk knows no {name}"),
    (r"(?:No match for argument|Unable to find a match): (?P<name>\S+)", "dnf knows no {name}"),
    (r"'(?P<name>[^']+)' not found in package names", "zypper knows no {name}"),
    (r"^(?:[#\d. ]+)?(?:rlm-containers: )?(?P<name>this image has .+)", "{name}"),
    (r"(?P<name>the --mount option requires BuildKit)", "{name}"),
)

# Found last, when nothing else names a package: what pip was at.
_AT = re.compile(r"(?:Collecting|Building wheel for|Getting requirements to build wheel for) (\S+)")

_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"certificate verify failed|CERTIFICATE_VERIFY_FAILED",
        "Name the certificates that this network needs: PIP_CERT=FILE.",
    ),
    (
        r"name resolution|Could not resolve|NewConnectionError|Network is unreachable|Timeout",
        "Builds need the network, or an image that was exported where there is one: see "
        "docs/images.md.",
    ),
    (r"neither pip nor ensurepip", 'Add system_packages=["python3-pip"], or use another image.'),
    (r"no Python$", "Use an image with Python 3.9 or later."),
    (r"no package manager", "Use an image with apt-get, apk or dnf, or a dockerfile=…."),
    (r"requires BuildKit", "Install docker's buildx plugin, or leave out --mount."),
    (r"No space left on device", "Make room: `rlm-containers images prune`."),
)

# What builders say of themselves, and of the one step that there is.
_NOISE = re.compile(
    r"^DEPRECATED: |^ +(?:BuildKit is currently|environment-variable|Install the buildx|https://docs)"
    r"|\bFILES=/|install\.sh"
)

_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")


def without_credentials(text: str) -> str:
    """The text with names and passwords in addresses made unreadable."""
    return _CREDENTIALS.sub("****@", text)


def build_failure(error: ImageBuildError, what: str, image: str) -> ImageBuildError:
    """The error that says which package is at fault, and shows the end of the log.

    Args:
        error: what the runtime raised; its ``stderr`` is the log.
        what: what was to be added.
        image: the image below.
    """
    log = without_credentials(error.stderr)
    lines = [line for line in log.splitlines() if not _NOISE.search(line)]
    remedy = "Correct packages=…, or what else was to be added."
    for pattern, text in _REMEDIES:
        if re.search(pattern, log, re.MULTILINE):
            remedy = text
            break
    shown = "\n".join(f"  {line}" for line in lines[-_SHOWN:])
    return ImageBuildError(
        f"{without_credentials(what)} could not be added to the image {image}: "
        f"{_cause(lines) or error.what}.",
        remedy=f"{remedy} The build's log ends:\n{shown}",
        exit_code=error.exit_code,
        stderr=log,
    )


def _cause(lines: list[str]) -> str | None:
    for pattern, text in _CAUSES:
        for line in lines:
            if found := re.search(pattern, line):
                return text.format(name=found["name"].strip("'\" ,.;"))
    for line in reversed(lines):
        if found := _AT.search(line):
            return f"pip failed at {found[1]}"
    return None
