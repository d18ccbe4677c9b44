"""Ed25519 signatures on commands, facts and artifacts: a topic's writer is not trusted for having reached the broker."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.control import Command, Decision, signable
from schemas.errors import SignatureError
from schemas.ids import content_hash

Signed = TypeVar("Signed", bound=Command | Decision)


class Signer:
    """Signs with one private key; ``key_id`` is the first 16 hex digits of the public key's SHA-256."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public = raw
        self.key_id = content_hash(raw)[:16]

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read a PEM private key. Raises SignatureError when the file is not one."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise SignatureError(f"signing key {path}: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"signing key {path}: not an Ed25519 key")
        return cls(key)

    @classmethod
    def create(cls, path: Path) -> Signer:
        """Make a key at ``path`` (mode 0600) and its public half at ``path.pub``, unless they exist."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            path.touch(mode=0o600)
            path.write_bytes(pem)
            path.with_suffix(path.suffix + ".pub").write_text(
                base64.b64encode(cls(key).public).decode() + "\n"
            )
        return cls.load(path)

    def sign_bytes(self, data: bytes) -> str:
        return base64.b64encode(self._key.sign(data)).decode()

    def sign(self, message: Signed) -> Signed:
        """The same message with ``signature`` and ``key_id`` set."""
        signature = {"signature": self.sign_bytes(signable(message)), "key_id": self.key_id}
        signed: Signed = message.model_copy(update=signature)  # type: ignore[assignment]
        return signed


class Verifier:
    """Checks signatures against a set of public keys (raw 32 bytes, base64). Raises SignatureError for what is none."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys: dict[str, Ed25519PublicKey] = {}
        for text in keys:
            try:
                raw = base64.b64decode(text)
                self._keys[content_hash(raw)[:16]] = Ed25519PublicKey.from_public_bytes(raw)
            except ValueError as error:
                raise SignatureError(f"{text[:60]!r} is no Ed25519 public key in base64: {error}") from error

    def knows(self, key_id: str) -> bool:
        """Whether that key is one of ours."""
        return key_id in self._keys

    def verify_bytes(self, data: bytes, signature: str, key_id: str) -> None:
        """Raises SignatureError unless ``signature`` over ``data`` is by a known key."""
        key = self._keys.get(key_id)
        if key is None:
            raise SignatureError(f"signed with unknown key {key_id or '(none)'}; known: {sorted(self._keys)}")
        try:
            raw = base64.b64decode(signature, validate=True)
            key.verify(raw, data)
        except (InvalidSignature, ValueError) as error:
            raise SignatureError(f"signature of key {key_id} does not fit the content") from error
        # The last character has bits that decode to nothing: of the texts that mean the same bytes only one was signed.
        if base64.b64encode(raw).decode() != signature:
            raise SignatureError(
                f"signature of key {key_id} is not in canonical base64: it was written by somebody else"
            )

    def verify(self, message: Command | Decision) -> None:
        self.verify_bytes(signable(message), message.signature, message.key_id)
