"""The host's settings for pip, as secrets: files that a build can read and an image does not keep.

They are read in pip's order (https://pip.pypa.io/en/stable/topics/configuration/): the files of the
system, of the user and of the environment, then ``PIP_CONFIG_FILE``, then ``PIP_…`` variables. Only
settings that say where packages come from are passed on. An image has no use for a user's
``target`` or ``require-virtualenv``.
"""

from __future__ import annotations

import configparser
import netrc
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from rlm_containers.errors import OptionError
from runtimes import PROXY_VARIABLES
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: The names of the secrets.
PIP_CONFIG = "pip.conf"
CA_BUNDLE = "ca.pem"
CLIENT_CERTIFICATE = "client.pem"

_SYSTEM_FILE = Path("/etc/pip.conf")

#: The directory in which builders mount secrets by default.
_TARGET = "/run/secrets"

_PASSED = (
    "no-index",
    "only-binary",
    "prefer-binary",
    "proxy",
    "retries",
    "timeout",
    "trusted-host",
)
_URLS = ("index-url", "extra-index-url", "find-links")

# Variables for the same file that pip's HTTP library reads, in its order.
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def pip_secrets() -> dict[str, bytes]:
    """Make a build's secrets: ``pip.conf`` and the certificates that it names, by their names.

    Raises:
        OptionError: pip's index is a directory of this host, which a build cannot see.
    """
    settings = _settings()
    found: dict[str, bytes] = {}
    lines = ["[global]"]
    lines += [f"{key} = {_value(settings[key].split())}" for key in _PASSED if key in settings]
    for key in _URLS:
        urls = [_with_credentials(url) for url in _reachable(key, settings.get(key, ""))]
        if urls:
            lines.append(f"{key} = {_value(urls)}")
    for name, key, path in (
        (CA_BUNDLE, "cert", _ca_bundle(settings)),
        (CLIENT_CERTIFICATE, "client-cert", settings.get("client-cert")),
    ):
        content = _content(path)
        if content:
            found[name] = content
            lines.append(f"{key} = {_TARGET}/{name}")
    found[PIP_CONFIG] = ("\n".join(lines) + "\n").encode()
    return found


def warn_of_proxies() -> None:
    """Warn of proxies in the environment that no build can reach."""
    for name in PROXY_VARIABLES:
        host = urlsplit(os.environ.get(name, "")).hostname or ""
        if host == "localhost" or host.startswith("127.") or host == "::1":
            logger.warning(
                "%s names this host's loopback address, which a build cannot reach: use an "
                "address of this host that containers can reach",
                name,
            )


def _settings() -> dict[str, str]:
    """Read the settings that pip would use, by the long names of its options."""
    named = os.environ.get("PIP_CONFIG_FILE")
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    # With /dev/null pip reads no file at all.
    for path in () if named == os.devnull else (*_files(), *([Path(named)] if named else ())):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            logger.warning("pip's settings in %s are left out: %s", path, error)
            continue
        for section, content in sections.items():
            if parser.has_section(section):
                content.update((key.replace("_", "-"), v) for key, v in parser.items(section))
    variables = {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }
    merged = {**sections["global"], **sections["install"], **variables}
    if "timeout" not in merged and "default-timeout" in merged:
        merged["timeout"] = merged["default-timeout"]
    return merged


def _files() -> Iterator[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        yield Path("/Library/Application Support/pip/pip.conf")
    for folder in reversed(os.environ.get("XDG_CONFIG_DIRS", "").split(":")):
        yield Path(folder or "/etc/xdg", "pip/pip.conf")
    yield _SYSTEM_FILE
    yield home / ".pip/pip.conf"
    own = home / "Library/Application Support/pip"
    if sys.platform == "darwin" and own.is_dir():
        yield own / "pip.conf"
    else:
        yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf")
    yield Path(sys.prefix, "pip.conf")


def _reachable(key: str, value: str) -> list[str]:
    """List the URLs of a setting that a build can reach."""
    found = []
    for url in value.split():
        if urlsplit(url).scheme not in ("", "file"):
            found.append(url)
        elif key == "index-url":
            # Falling back to a public index would be unsafe: it may have other packages of that
            # name.
            raise OptionError(
                f"pip's index-url is a directory of this host, which a build cannot see: {url}.",
                remedy="Serve it over HTTP, or build the image elsewhere and import it.",
            )
        else:
            logger.info("builds do without %s, which is on this host: %s", key, url)
    return found


def _with_credentials(url: str) -> str:
    """Add the user's name and password from ~/.netrc to a URL that has none."""
    parts = urlsplit(url)
    if not parts.hostname or "@" in parts.netloc:
        return url
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(parts.hostname)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return url
    if not known:
        return url
    user, _, password = known
    return urlunsplit(
        parts._replace(netloc=f"{quote(user, '')}:{quote(password or '', '')}@{parts.netloc}")
    )


def _ca_bundle(settings: Mapping[str, str]) -> str | None:
    """Find the certificates that this host's pip trusts. A build's pip has only its own."""
    if "cert" in settings:
        return settings["cert"]
    for name in _CA_VARIABLES:
        if os.environ.get(name):
            return os.environ[name]
    return ssl.get_default_verify_paths().cafile


def _content(path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        logger.warning("builds do without the certificates in %s: %s", path, error.strerror)
        return None


def _value(words: list[str]) -> str:
    return "\n    ".join(words)
