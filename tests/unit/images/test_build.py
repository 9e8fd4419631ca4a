"""The error of a failed build: the package, a remedy, and the end of the log."""

from __future__ import annotations

import pytest

from rlm_containers.errors import ImageBuildError
from rlm_containers.images.build import build_failure
from runtimes.text import clean

# As pip 23-25, apt-get 2.6, apk 2.14, dnf 4 and zypper 1.14 say it.
CAUSES = [
    (
        "ERROR: Could not find a version that satisfies the requirement nope==1 (from versions: "
        "none)\nERROR: No matching distribution found for nope==1",
        "pip finds no nope==1 that fits",
    ),
    ("#5 22.78 ERROR: No matching distribution found for nope", "pip finds no nope that fits"),
    ("ERROR: Invalid requirement: 'a=1': Expected end", "pip cannot read the requirement"),
    (
        "ERROR: Cannot install a==1 and b==2 because these package versions have conflicting "
        "dependencies.",
        "a==1 and b==2 contradict each other",
    ),
    ("  ERROR: Failed building wheel for lxml\nFailed to build lxml", "lxml does not build"),
    (
        "ERROR: Failed to build installable wheels for some pyproject.toml based projects (lxml)",
        "lxml does not build",
    ),
    (
        "Collecting six\nCollecting broken==1 (from -r requirements.txt)\n"
        "  error: subprocess-exited-with-error",
        "pip failed at broken==1",
    ),
    ("E: Unable to locate package nope", "apt-get knows no nope"),
    ("E: Package 'nope' has no installation candidate", "apt-get has no nope to install"),
    ("E: Version '1' for 'nope' was not found", "apt-get has no such version of nope"),
    ("ERROR: unable to select packages:\n  nope (no such package):", "apk knows no nope"),
    ("No match for argument: nope", "dnf knows no nope"),
    ("Error: Unable to find a match: nope", "dnf knows no nope"),
    ("No provider of 'x'\n'nope' not found in package names.", "zypper knows no nope"),
    ("rlm-containers: this image has no package manager", "this image has no package manager"),
    ("something else", "docker could not build"),
]


def failure(log: str, what: str = "six") -> ImageBuildError:
    error = ImageBuildError("docker could not build it", exit_code=1, stderr=log)
    return build_failure(error, what, "python:3.11-slim")


@pytest.mark.parametrize(("log", "said"), CAUSES)
def test_the_package_is_named(log: str, said: str) -> None:
    error = failure(f"Collecting six\n{log}\nThe command returned a non-zero code: 1")
    if "failed at" not in said and "docker" not in said:
        assert said in error.what
    else:
        assert said in failure(log).what
    assert "could not be added to the image python:3.11-slim" in error.what
    assert error.exit_code == 1


@pytest.mark.parametrize(
    ("log", "remedy"),
    [
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT"),
        ("NewConnectionError('Temporary failure in name resolution')", "the network"),
        ("rlm-containers: this image has neither pip nor ensurepip", "python3-pip"),
        ("the --mount option requires BuildKit", "buildx"),
        ("OSError: [Errno 28] No space left on device", "prune"),
        ("something else", "packages="),
    ],
)
def test_there_is_a_remedy(log: str, remedy: str) -> None:
    assert remedy in failure(log).remedy.partition("The build's log ends:")[0]


def test_the_end_of_the_log_is_shown() -> None:
    error = failure("\n".join(f"line {number}" for number in range(100)))
    assert error.remedy.endswith("  | line 98\n  | line 99")
    assert "line 79" not in error.remedy
    assert "line 0" in error.stderr


def test_messages_of_the_builder_itself_are_not_the_cause() -> None:
    log = (
        "DEPRECATED: The legacy builder is deprecated and will be removed in a future release.\n"
        'Step 3/5 : RUN ["/bin/sh", "-ec", "FILES=/x SECRETS=/y\\n. \\"$FILES/install.sh\\""]\n'
        "the cause\n"
    )
    assert failure(log).remedy.endswith("ends:\n  | the cause")


def test_no_password_is_shown() -> None:
    url = "https://user:s3cret@example.org/simple"
    error = failure(f"Looking in indexes: {url}\nERROR: x", what=f"x @ {url}")
    for text in (str(error), error.stderr, repr(error.__dict__)):
        assert "s3cret" not in text
        assert "example.org/simple" in text or text is error.what
    assert clean("a http://u@h/ b ftp://x:y@z") == "a http://****@h/ b ftp://****@z"
    assert clean("git@example.org:a/b.git") == "git@example.org:a/b.git"
