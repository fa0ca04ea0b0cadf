"""The throw-away authority that signs the certificates of a cluster with TLS. On the driver alone.

Used by managers when ``tls=True`` asks for it. Its key is made at first need, is known to this process only, never
written anywhere and gone when the process ends; so a certificate proves "made by this driver, for one of its workers",
and nothing needs to be renewed or revoked. Needs the package ``cryptography`` (``pip install 'distpool[tls]'``); what
uses the certificates (``tls``) does with the standard library, so workers need no extra.

Owns: the authority of this process; like the cookie one for all its clusters.
"""

from __future__ import annotations

import datetime
import threading
from typing import Final

from distpool.credentials import NAMES, Credentials, Part
from distpool.tls import Encryption

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
except ImportError as error:
    raise ImportError(
        "tls=True makes certificates with the package cryptography, which is not installed: pip install 'distpool[tls]'"
    ) from error

# Longer than any driver lives: the end of the authority is the end of its certificates. Begun a day ago, because the
# clock of another machine may be behind.
_DAYS: Final = 3650
_DAYS_AGO: Final = 1


class Authority:
    """Signs certificates; its own is what both sides of a connection trust, and nothing else."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "distpool: authority of one cluster")])
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._certificate = _pem(certificate)
        # What this process, the driver, needs for its connections to workers.
        self.encryption: Final = Encryption(self.issue("driver"), "worker")

    def issue(self, part: Part) -> Credentials:
        """Make a key and a certificate for a process of this part."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(x509.Name([]), key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAMES[part])]), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Credentials(self._certificate, _pem(certificate), secret.decode("ascii"))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=_DAYS_AGO))
            .not_valid_after(now + datetime.timedelta(days=_DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


class _OfThisProcess:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _authority: two threads must not make two
        self._authority: Authority | None = None

    def get(self) -> Authority:
        with self._lock:
            if self._authority is None:
                self._authority = Authority()
            return self._authority


_of_this_process = _OfThisProcess()


def authority() -> Authority:
    """Return the authority of this process."""
    return _of_this_process.get()
