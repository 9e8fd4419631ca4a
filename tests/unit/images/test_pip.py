"""The host's settings for pip: read as pip reads them, and passed on if a build needs them."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_containers.errors import OptionError
from rlm_containers.images import pip as pipsettings
from rlm_containers.images.pip import pip_secrets, warn_of_proxies
from runtimes import PROXY_VARIABLES


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this process a user without settings, on a system without settings."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "no-certificates"))
    monkeypatch.setattr(pipsettings, "_SYSTEM_FILE", tmp_path / "system.conf")
    return tmp_path


def user_file(home: Path, text: str) -> Path:
    path = home / ".config" / "pip" / "pip.conf"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def passed() -> dict[str, list[str]]:
    """Read the settings in the secret as pip would."""
    parser = configparser.RawConfigParser()
    parser.read_string(pip_secrets()["pip.conf"].decode())
    return {key: value.split() for key, value in parser.items("global") if key != "cert"}


def test_without_settings_there_is_an_empty_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert pip_secrets() == {"pip.conf": b"[global]\n"}


def test_only_settings_about_sources_of_packages_are_passed_on(home: Path) -> None:
    user_file(
        home,
        "[global]\nindex-url = https://user:pass%40word@example.org/simple\n"
        "extra-index-url =\n    https://one.example.org\n    https://two.example.org\n"
        "trusted-host = example.org\ntimeout = 7\ntarget = /here\nrequire-virtualenv = true\n"
        "cache-dir = /there\nuser = true\nconstraint = /etc/constraints.txt\n"
        "[install]\nno_index = false\n[list]\nformat = columns\n",
    )
    assert passed() == {
        "index-url": ["https://user:pass%40word@example.org/simple"],
        "extra-index-url": ["https://one.example.org", "https://two.example.org"],
        "trusted-host": ["example.org"],
        "timeout": ["7"],
        "no-index": ["false"],
    }


def test_the_order_of_files_and_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "xdg" / "pip").mkdir(parents=True)
    (home / "xdg" / "pip" / "pip.conf").write_text(
        "[global]\nindex-url = https://system.example.org\nretries = 1\ntimeout = 1\n"
        "[install]\ntrusted-host = install.example.org\n"
    )
    user_file(
        home,
        "[global]\nindex-url = https://user.example.org\ntimeout = 2\ntrusted-host = a.example.org\n",
    )
    named = home / "named.conf"
    named.write_text("[global]\ntimeout = 3\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(named))
    expected = {
        "index-url": ["https://user.example.org"],
        "retries": ["1"],
        "timeout": ["3"],
        "trusted-host": ["install.example.org"],
    }
    assert passed() == expected
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.example.org")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "4")
    assert passed() == {**expected, "index-url": ["https://variable.example.org"]}
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert passed() == {"index-url": ["https://variable.example.org"], "timeout": ["4"]}


def test_pip_itself_agrees(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_file(home, "[global]\nindex-url = https://user.example.org\nretries = 9\n")
    monkeypatch.setenv("PIP_RETRIES", "8")
    said = subprocess.run(
        (sys.executable, "-m", "pip", "config", "list"), capture_output=True, text=True, check=True
    ).stdout
    assert "global.index-url='https://user.example.org'" in said
    assert ":env:.retries='8'" in said
    assert passed()["index-url"] == ["https://user.example.org"]
    assert passed()["retries"] == ["8"]


def test_certificates_are_passed_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("system", "curl", "requests", "pip", "client"):
        (home / name).write_text(name)
    for variable, name in (
        ("SSL_CERT_FILE", "system"),
        ("CURL_CA_BUNDLE", "curl"),
        ("REQUESTS_CA_BUNDLE", "requests"),
        ("PIP_CERT", "~/pip"),
    ):
        monkeypatch.setenv(variable, str(home / name) if "~" not in name else name)
        secrets = pip_secrets()
        assert secrets["ca.pem"] == name.removeprefix("~/").encode()
        assert b"cert = /run/secrets/ca.pem\n" in secrets["pip.conf"]
    monkeypatch.setenv("PIP_CLIENT_CERT", str(home / "client"))
    secrets = pip_secrets()
    assert secrets["client.pem"] == b"client"
    assert b"client-cert = /run/secrets/client.pem\n" in secrets["pip.conf"]


def test_missing_certificates(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIP_CERT", str(home / "missing"))
    assert "ca.pem" not in pip_secrets()
    assert "missing" in caplog.text


def test_passwords_of_the_netrc_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".netrc").write_text("machine example.org login me@here password p@ss/word\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org:8443/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://x:y@example.org/a https://other.org/b")
    assert passed() == {
        "index-url": ["https://me%40here:p%40ss%2Fword@example.org:8443/simple"],
        "extra-index-url": ["https://x:y@example.org/a", "https://other.org/b"],
    }
    (home / ".netrc").write_text("garbage")
    assert passed()["index-url"] == ["https://example.org:8443/simple"]


def test_directories_of_this_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/srv/wheels https://example.org/wheels")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///srv/simple")
    caplog.set_level("INFO")
    assert passed() == {"find-links": ["https://example.org/wheels"]}
    assert "/srv/wheels" in caplog.text
    # Another index is never used silently.
    monkeypatch.setenv("PIP_INDEX_URL", "file:///srv/simple")
    with pytest.raises(OptionError, match="a build cannot see"):
        pip_secrets()


def test_proxies_on_the_loopback_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    warn_of_proxies()
    assert not caplog.records
    monkeypatch.setenv("http_proxy", "http://user:s3cret@127.0.0.1:3128")
    warn_of_proxies()
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == ["http_proxy"]
    assert "s3cret" not in caplog.text


def test_a_broken_file_is_left_out(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = user_file(home, "index-url = https://no-section.example.org\n")
    assert "index-url" not in passed()
    assert str(path) in caplog.text
