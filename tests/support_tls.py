"""A certificate for this machine and its key, made anew for every test that needs one."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def pair(directory: Path, password: str = "", name: str = "api") -> dict[str, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key, as settings name them."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "driftline")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start.replace(year=2100))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    locked = (
        serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    )
    files = {
        "api_certificate_file": directory / f"{name}.pem",
        "api_key_file": directory / f"{name}.key",
    }
    files["api_certificate_file"].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files["api_key_file"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    return files
