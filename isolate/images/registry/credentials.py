"""The files in which ``docker login`` and ``podman login`` keep credentials, and their helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from isolate.images.errors import RegistryError
from isolate.images.reference import DOCKER_HUB

__all__ = ["Credentials", "files", "lookup"]

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_LARGEST_FILE = 4 << 20
_LARGEST_ANSWER = 1 << 20
_HELPER_SECONDS = 60.0


@dataclass(frozen=True)
class Credentials:
    """A user and a password, or a token that stands for both (``identity``: an OAuth2 refresh token)."""

    user: str = ""
    password: str = ""
    identity: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, …)"  # no secret in a traceback

    @property
    def basic(self) -> str:
        """The header for HTTP's basic authentication."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def files() -> list[str]:
    """The files that are looked through, in order."""
    found = []
    if os.environ.get("REGISTRY_AUTH_FILE"):
        found.append(os.environ["REGISTRY_AUTH_FILE"])
    home = os.path.expanduser("~")  # "~" as it is where there is none: no file of the working directory's is looked at
    docker = os.environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
    found.append(os.path.join(docker, "config.json"))
    # As podman and skopeo look for it (containers-auth.json(5)); without a session there is no XDG_RUNTIME_DIR.
    user = os.geteuid()
    found.append(os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}", "containers", "auth.json"))
    found.append(f"/run/containers/{user}/auth.json")
    settings = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    found.append(os.path.join(settings, "containers", "auth.json"))
    return [path for path in found if not path.startswith("~")]


def lookup(registry: str, repository: str = "") -> Credentials | None:
    """The credentials for a repository in the user's files: those of the first file that has any.

    An entry may be for a repository, for all below a path (``quay.io/team``), or for the registry; the longest that
    fits is taken. Helpers are named for registries alone (containers-auth.json(5)).

    :raises RegistryError: a file, or a helper that it names, cannot be used.
    """
    for path in files():
        document = _read(path)
        if document is not None:
            found = _from(document, registry, repository, path)
            if found is not None:
                return found
    return None


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        if len(data) > _LARGEST_FILE:
            raise ValueError("it is too large")
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise RegistryError(
            None, "CREDENTIALS", f"{path} cannot be read: {error}", remedy="mend it, or pass credentials=()"
        ) from None
    return document


def _keys(registry: str) -> tuple[str, ...]:
    return _HUB_KEYS if registry == DOCKER_HUB else _spelled(registry)


def _spelled(registry: str) -> tuple[str, ...]:
    return (registry, *(f"https://{registry}{rest}" for rest in ("", "/", "/v1/", "/v2/")))


def _paths(registry: str, repository: str) -> list[str]:
    """``quay.io/team/app``, ``quay.io/team``: the keys that are more than a registry, the longest first."""
    words = repository.split("/") if repository else []
    return ["/".join([registry, *words[:count]]) for count in range(len(words), 0, -1)]


def _from(document: dict[str, Any], registry: str, repository: str, path: str) -> Credentials | None:
    helpers = document.get("credHelpers")
    auths = document.get("auths")
    for key in _keys(registry):
        if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
            return _ask(helpers[key], key)
    for key in (*_paths(registry, repository), *_keys(registry)):
        entry = auths.get(key) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and any(entry.get(k) for k in ("auth", "username", "identitytoken")):
            return _decode(entry, path, key)
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        return _ask(store, _HUB_KEYS[0] if registry == DOCKER_HUB else registry)
    return None


def _decode(entry: dict[str, Any], path: str, key: str) -> Credentials:
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    text = entry.get("auth")
    if text:
        try:
            user, colon, password = base64.b64decode(str(text), validate=True).decode().partition(":")
            if not colon:
                raise ValueError("no colon")
        except (binascii.Error, ValueError):
            raise RegistryError(
                None, "CREDENTIALS", f"{path}: the entry of {key} is not base64 of user:password", remedy="log in again"
            ) from None
        password = password.rstrip("\0")
    return Credentials(user, password, str(entry.get("identitytoken") or ""))


def _ask(helper: str, server: str) -> Credentials | None:
    """Ask ``docker-credential-<helper>`` (docker-credential-helpers, "get")."""
    if _HELPER.fullmatch(helper) is None:
        raise RegistryError(None, "CREDENTIALS", f"no credential helper can have the name {helper!r}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RegistryError(
            None,
            "CREDENTIALS",
            f"{program} cannot be asked: {error}",
            remedy="install it, or take it out of config.json",
        ) from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[:300].decode("utf-8", "replace").strip()
        if "not found" in said.lower():
            return None
        raise RegistryError(None, "CREDENTIALS", f"{program} failed ({done.returncode}): {said}")
    try:
        if len(done.stdout) > _LARGEST_ANSWER:
            raise ValueError("too long")
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RegistryError(None, "CREDENTIALS", f"{program} answered with no credentials: {error!r}") from None
    return Credentials(identity=secret) if user == "<token>" else Credentials(user, secret)
