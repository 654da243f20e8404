"""The certificate of a listener, renewed while it is used.

Certificates are replaced under a running server, by cert-manager or by hand, certificate and key
one after the other. A new pair is tried in a context of its own and taken only if it fits, so a
half-written one costs a line in the log; open connections keep what they were opened with. With a
pair that never fits the old one goes on, until it expires.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from aibrix_ray.errors import ConfigError

logger = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A certificate chain and its key, from PEM files that are read again when they change.

    Args:
        cert_file: path of the chain, the server's own certificate first.
        key_file: path of its private key, without a passphrase.
        field: where the two stand in the configuration, for errors.

    Raises:
        ConfigError: a file cannot be read, or the two do not belong together.
    """

    def __init__(
        self, cert_file: str, key_file: str, *, field: str = "gateway.args.http.tls"
    ) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._field = field
        self._seen = self._stamp()
        self._current = self.context = self._load()
        # A listener keeps the context that it was started with; each handshake asks it here for
        # the one of now.
        self.context.sni_callback = self._choose

    def refresh(self) -> bool:
        """Take the files if they have changed and fit; return whether they were taken."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self._current = self._load()
        except ConfigError as error:
            logger.error("the changed certificate is not taken, the old one stays: %s", error)
            return False
        logger.info("took the changed certificate %s", self._cert_file)
        return True

    def _choose(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext
    ) -> None:
        if self._current is not self.context:
            connection.context = self._current

    def _stamp(self) -> _Stamp:
        """Return what changes with the files: Kubernetes swaps a link, others write in place."""
        found = []
        for file in (self._cert_file, self._key_file):
            try:
                stat = os.stat(file)
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        self._check_readable("cert_file", self._cert_file)
        self._check_readable("key_file", self._key_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self._cert_file)
        except ssl.SSLError as error:
            raise self._wrong(
                "cert_file", "a certificate chain in PEM, the server's own first"
            ) from error
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password=self._no_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise self._wrong(
                    "key_file",
                    f"the key of the first certificate in {self._cert_file}",
                    hint="the two do not belong together",
                ) from error
            raise self._wrong("key_file", "a private key in PEM") from error
        return context

    def _check_readable(self, name: str, file: str) -> None:
        try:
            Path(file).read_bytes()
        except OSError as error:
            where = f"; looked for at {Path(file).absolute()}" if not os.path.isabs(file) else ""
            raise self._wrong(
                name,
                "a file that the gateway can read",
                hint=f"{error.strerror}{where}; it must be there on every node with a gateway",
            ) from error

    def _no_passphrase(self) -> str:
        # Without this OpenSSL would ask on the terminal, and wait.
        raise self._wrong(
            "key_file",
            "a private key without a passphrase",
            hint="decrypt it: openssl pkey -in KEY -out PLAIN",
        )

    def _wrong(self, name: str, expected: str, *, hint: str = "") -> ConfigError:
        value = self._cert_file if name == "cert_file" else self._key_file
        return ConfigError(path=f"{self._field}.{name}", value=value, expected=expected, hint=hint)
