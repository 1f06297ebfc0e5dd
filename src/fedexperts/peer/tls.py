"""Certificates of peers, and gRPC's credentials made of them: each side shows its own, and both must be of one authority."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import InputError
from ..reading import read_bytes

MOST_B = 2**20
MAKES = "fedexperts peer init, or deploy init"
"""Who has made the files here."""
Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Identity:
    """PEM texts: the authority's certificate, and one's own with its key."""

    ca: bytes
    certificate: bytes
    key: bytes

    def server(self) -> Any:
        """Credentials of a server that asks callers for theirs."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.ca, require_client_auth=True)

    def channel(self) -> Any:
        """Credentials of a caller."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


@dataclass(frozen=True)
class Authority:
    """Who signs: a certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @classmethod
    def new(cls, name: str, days: int) -> Authority:
        """One of our own."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedexperts {name}")])
        builder = _builder(subject, subject, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(sign=True), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Authority:
        """The user's own.

        Raises:
            InputError: a file cannot be read, the certificate is out of date or of no authority, or the key is another's.
        """
        found = certificate_of(certificate)
        check_dates(found, str(certificate))
        try:
            is_ca = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_ca = False
        if not is_ca:
            raise InputError(f"{certificate}: is no certificate of an authority (CA); give the one that is to sign the others")
        secret = _key_of(key)
        _check_pair(found, secret, certificate, key)
        return cls(found, secret)

    def leaf(self, name: str, hosts: tuple[str, ...], days: int) -> tuple[bytes, bytes]:
        """A certificate of a name in DNS, good at these hosts too, and its key, as PEM texts."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self.certificate.subject, key.public_key(), days)
        names = [x509.DNSName(name), *(_host(host) for host in hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign=False), critical=True)
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        return pem(builder.sign(self.key, hashes.SHA256())), key_pem(key)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(subject: x509.Name, issuer: x509.Name, public_key: Any, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of two machines differ
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key) -> bytes:
    """A private key as text, not encrypted: keep the file from others."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def ssh_pair() -> tuple[bytes, bytes]:
    """A new key as OpenSSH writes it, not encrypted, and its public half: what Flower knows a node by."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    return private, key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def ssh_public(path: Path) -> bytes:
    """The public half of a private key that `ssh_pair` has made.

    Raises:
        InputError: there is none.
    """
    try:
        key = serialization.load_ssh_private_key(read_bytes(path, "", MOST_B), None)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: holds no private key of OpenSSH that is not encrypted ({error}); copy it again") from error
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def certificate_of(path: Path) -> x509.Certificate:
    """The first certificate of a file.

    Raises:
        InputError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(read_bytes(path, "", MOST_B))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: holds no certificate in PEM ({error}); copy it again, or make a new one ({MAKES})"
        ) from error


def _key_of(path: Path) -> Any:
    try:
        return serialization.load_pem_private_key(read_bytes(path, "", MOST_B), None)
    except (ValueError, TypeError) as error:  # TypeError: an encrypted key
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: holds no private key in PEM that is not encrypted ({error}); copy it again") from error


def _check_pair(certificate: x509.Certificate, key: Any, path: Path, key_path: Path) -> None:
    if certificate.public_key() != key.public_key():
        raise InputError(f"{key_path}: is not the key of {path}; put the two that belong together")


def check_dates(certificate: x509.Certificate, where: str) -> None:
    """Whether a certificate is good now.

    Raises:
        InputError: it has expired, or is not good yet.
    """
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        raise InputError(f"{where}: expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; make new ones ({MAKES})")
    if certificate.not_valid_before_utc > now:
        raise InputError(
            f"{where}: is good from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; correct this machine's clock"
        )


def names_of(certificate: x509.Certificate) -> list[str]:
    """Its names in DNS."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(names.get_values_for_type(x509.DNSName))


def identity(ca: Path, certificate: Path, key: Path, name: str | None = None) -> Identity:
    """One's own identity from its files, checked.

    Raises:
        InputError: a file is missing or wrong, out of date, of another authority, or not of ``name``.
    """
    authority, own = certificate_of(ca), certificate_of(certificate)
    check_dates(authority, str(ca))
    check_dates(own, str(certificate))
    _check_pair(own, _key_of(key), certificate, key)
    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InputError(f"{certificate}: is not signed by {ca}; take both of one {MAKES}") from error
    if name is not None and name not in names_of(own):
        raise InputError(
            f"{certificate}: is of {', '.join(names_of(own)) or 'no name'}, and not of {name}; take this client's own, "
            "or that of this run: fedexperts peer init"
        )
    return Identity(*(read_bytes(path, "", MOST_B) for path in (ca, certificate, key)))
