"""TLS: certificate and key from files, checked before anything listens, and read again when they have changed."""

from __future__ import annotations

import logging
import ssl
import stat
from pathlib import Path

from pipeline.errors import Invalid
from pipeline.settings import Settings

_log = logging.getLogger(__name__)


class Tls:
    """One context for all connections; new ones get the certificate that the files hold now. Invalid: what is wrong with them."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._seen = self._stamps()
        self._told = ""
        self.context = self._context()

    def renew(self) -> bool:
        """Look at the files; where they changed and are good, use them. Where they are not, say so once and go on as before."""
        try:
            if (stamps := self._stamps()) == self._seen:
                return False
            self._seen = stamps
            self._context()  # both are good: only then touch the one in use
            self.context.load_cert_chain(self._cert, self._key, _no_password)
        except (Invalid, ssl.SSLError) as error:
            if str(error) != self._told:
                _log.error("the certificate in use stays: %s", error)
            self._told = str(error)
            return False
        self._told = ""
        _log.info("the certificate was read again")
        return True

    def _stamps(self) -> list[tuple[int, ...]]:
        found = [_stat("TLS_CERT_FILE", self._cert), _stat("TLS_KEY_FILE", self._key)]
        if found[1].st_mode & stat.S_IRWXO:
            raise Invalid(f"PIPELINE_TLS_KEY_FILE={self._key}: everybody on this machine may read it; chmod 600 it, or 640 for a group")
        return [(each.st_mtime_ns, each.st_size, each.st_ino) for each in found]

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION  # else a client could have us compute without end
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, _no_password)
        except ssl.SSLError as error:
            raise Invalid(self._wrong(error)) from None
        except OSError as error:
            raise Invalid(f"PIPELINE_TLS_CERT_FILE or PIPELINE_TLS_KEY_FILE: {error.strerror}; let this user read them") from None
        return context

    def _wrong(self, error: ssl.SSLError) -> str:
        reason, encrypted = error.reason or "", b"ENCRYPTED" in self._key.read_bytes()[:4096]
        if "MISMATCH" in reason:
            return f"PIPELINE_TLS_KEY_FILE={self._key}: is not the key of {self._cert}; name the two that belong together"
        if encrypted:
            return f"PIPELINE_TLS_KEY_FILE={self._key}: is encrypted; decrypt it (openssl pkey -in KEY -out PLAIN), and chmod 600 it"
        told = reason.lower().replace("_", " ") or "cannot be used"
        return f"PIPELINE_TLS_CERT_FILE={self._cert} or PIPELINE_TLS_KEY_FILE={self._key}: {told}; both must be PEM, the certificate first"


def tls_of(settings: Settings) -> Tls | None:
    """What the settings name, checked; None: no TLS."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Tls(settings.tls_cert_file, settings.tls_key_file)


def _stat(name: str, path: Path):
    try:
        with path.open("rb"):
            return path.stat()
    except OSError as error:
        raise Invalid(f"PIPELINE_{name}={path}: {error.strerror}; name a file that this user may read") from None


def _no_password() -> str:
    """For an encrypted key: OpenSSL would ask at the terminal, and wait."""
    return ""
