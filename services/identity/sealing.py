"""Secrets of other people, kept so that only this service can read them, and only beside what they belong to."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES, NONCE_BYTES = 32, 12
KEY_ID_LENGTH = 12
SECRET_LENGTH = 32
"""Characters of a secret at least."""

SEALED = re.compile(rf"([0-9a-f]{{{KEY_ID_LENGTH}}})\.([A-Za-z0-9_-]+)")


class CannotOpen(Exception):
    """Something was sealed with a secret that is not known here, or is not what was sealed, or not there."""


class Sealer:
    """Seals texts with AES-256-GCM under a key derived from a secret (HKDF-SHA256), and opens them.

    To change the secret, put the new one first: it seals from then on, and every one opens what it has sealed.
    A secret may go when nothing that it has sealed is left; `is_current` tells what is left.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        """`secrets`: of this system, the newest first. Raises ValueError for none, and for a short one."""
        if not secrets or any(len(each) < SECRET_LENGTH for each in secrets):
            raise ValueError(f"To seal needs a secret of at least {SECRET_LENGTH} characters")
        keys = [derived(each) for each in secrets]
        self._current = key_id(keys[0])
        self._keys = {key_id(key): AESGCM(key) for key in keys}

    def seal(self, plain: str, *bound_to: str) -> str:
        """As `<key id>.<base64url of nonce and ciphertext>`; it opens only with the same `bound_to`."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._keys[self._current].encrypt(nonce, plain.encode(), belonging(self._current, bound_to))
        return f"{self._current}.{base64.urlsafe_b64encode(nonce + sealed).decode().rstrip('=')}"

    def open(self, sealed: str, *bound_to: str) -> str:
        """What `seal` was given. Raises CannotOpen."""
        if not (parts := SEALED.fullmatch(sealed)):
            raise CannotOpen("This was never sealed: expected `<key id>.<base64url>`")
        used, text = parts.groups()
        if not (key := self._keys.get(used)):
            raise CannotOpen(f"Sealed with a secret that is not known here (key {used}); name it beside the new one")
        content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) % 4 != 1 else b""
        try:
            return key.decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], belonging(used, bound_to)).decode()
        except (InvalidTag, ValueError):  # ValueError: too short for a nonce
            raise CannotOpen(
                f"Sealed with key {used}, and changed since or moved to where it does not belong"
            ) from None

    def is_current(self, sealed: str) -> bool:
        """Whether the first secret has sealed it; if not, seal it again when it is next in hand."""
        return sealed.startswith(f"{self._current}.")


def derived(secret: str) -> bytes:
    """The key for sealing; other keys of the same secret say another `info`."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"boxoffice sealing 1").derive(secret.encode())


def key_id(key: bytes) -> str:
    """Tells keys apart and says nothing of them."""
    return hashlib.sha256(b"boxoffice key id" + key).hexdigest()[:KEY_ID_LENGTH]


def belonging(key: str, bound_to: tuple[str, ...]) -> bytes:
    """What is authenticated beside the text; as JSON, so that no two differ and read the same."""
    return json.dumps([key, *bound_to]).encode()
