"""Certificates of authorities that a test owns."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """The two files of a listener's certificate, and how they are written."""

    cert: Path
    key: Path

    def write(self, made: trustme.LeafCert, *, key: trustme.LeafCert | None = None) -> None:
        """Replace both; `key` belongs to another certificate in the middle of a renewal."""
        self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        self.key.write_bytes((key or made).private_key_pem.bytes())


def files_in(folder: Path) -> Files:
    return Files(cert=folder / "tls.crt", key=folder / "tls.key")


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts this authority alone."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
