"""API keys: random, shown once, kept as hashes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from ..core.errors import BadInput
from .errors import Unauthorized

PREFIX = "vk_"


def new_key() -> str:
    """256 random bits, so that a plain hash of it tells nothing."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Who may call. hashes: client -> sha256 of its key. None of them: everybody may, as one client.

    Raises:
        BadInput: the file is no list of keys.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._hashes: Mapping[str, str] = {}
        if file is not None:
            try:
                given = json.loads(file.read_text("utf-8"))
                self._hashes = {str(name): bytes.fromhex(digest).hex() for name, digest in given.items()}
            except (OSError, ValueError, AttributeError, TypeError) as exc:
                raise BadInput(f"{file} holds no keys: {exc}.", f"Make one: vitrify serve-key {file} NAME") from exc
            if not self._hashes:
                raise BadInput(f"{file} holds no key.", f"Make one: vitrify serve-key {file} NAME")

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def client(self, authorization: str | None) -> str:
        """The name of the key's owner. authorization: the header, Bearer KEY or Basic with the key as password.

        Raises:
            Unauthorized: no key, or one that is not known.
        """
        if not self._hashes:
            return "local"
        given = digest_of(_key_in(authorization or ""))
        found = None
        for name, digest in self._hashes.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, given):
                found = name
        if found is None:
            raise Unauthorized("The key is missing or not known.", "Send the header `Authorization: Bearer KEY`.")
        return found


def _key_in(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except ValueError:  # no base64, or no UTF-8; letters beyond ASCII too, for which binascii has another exception
            return ""
    return ""


def add_key(file: Path, name: str) -> str:
    """Write a new key's hash into the file, which only its owner can read; the key itself is returned and kept nowhere.

    Raises:
        BadInput: the file is no list of keys, or has this name.
    """
    hashes: dict[str, str] = {}
    if file.exists():
        Keys(file)
        hashes = json.loads(file.read_text("utf-8"))
    if name in hashes:
        raise BadInput(f"{file} has a key for {name!r}.", "Use another name, or remove the line.")
    key = new_key()
    hashes[name] = digest_of(key)
    file.touch(mode=0o600)
    file.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    return key
