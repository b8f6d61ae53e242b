"""What an authenticated federation needs: a certificate authority, the server's certificate, a key pair per node.

``ca.crt`` goes to every machine; ``server.pem`` and ``server.key`` stay with the SuperLink, a node's private key stays
with its node, and ``ca.key`` is needed only to make another server certificate.
"""

import contextlib
import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhess.base.errors import UsageError

ALWAYS = ("localhost", "127.0.0.1", "::1")  # the SuperLink's own programs reach it there
CA_DAYS = 3650
CURVE = ec.SECP384R1  # Flower accepts the NIST curves for nodes


class Keys:
    """The files of a federation, in one folder: certificates and private keys of authority and server, and nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.ca_key = folder / "ca.crt", folder / "ca.key"
        self.server, self.server_key = folder / "server.pem", folder / "server.key"

    def node(self, name: str) -> Path:
        """Return the file of a node's private key."""
        return self.folder / "nodes" / name

    def public(self, name: str) -> Path:
        """Return the file of a node's public key."""
        return self.folder / "nodes" / f"{name}.pub"

    def public_keys(self) -> list[Path]:
        """List the public keys of the nodes, by name."""
        return sorted((self.folder / "nodes").glob("*.pub"))

    def require(self, *files: Path) -> None:
        """Check that files exist."""
        for file in files:
            if not file.is_file():
                make = f"`python -m fedhess.deploy keys --keys {self.folder}"
                how = f"copy it from where the federation's keys were made, or make them first: {make} --host HOST`"
                if file == self.node(file.name):
                    how = f"make it with {make} --node {file.name}`, and have its .pub registered"
                raise UsageError(f"there is no {file}; {how}")


def make_keys(keys: Keys, *, hosts: Sequence[str], nodes: Sequence[str], days: int) -> list[Path]:
    """Make the files that do not exist yet, and return them; nothing is overwritten.

    With ``nodes`` alone only their keys are made. These need no authority, so a node's machine can make its own.

    Args:
        keys: The folder.
        hosts: Names and IP addresses under which the SuperLink is reached; those of loopback are added.
        nodes: Names of nodes.
        days: Validity of the server's certificate.

    Raises:
        UsageError: A name is invalid, the folder cannot be written or holds half of a pair, the authority's key
            cannot be used, or the existing server certificate is damaged, lacks a host or has expired.
    """
    for name in nodes:
        if not re.fullmatch(r"[^./\\][^/\\]*", name):
            raise UsageError(f"--node: expected a name that can be a file's, got {name!r}")
    names = [_name(host) for host in dict.fromkeys([*hosts, *ALWAYS])]
    made: list[Path] = []
    try:
        if hosts or not nodes:
            if not keys.ca.exists() and not keys.ca_key.exists():
                made += _make_ca(keys)
            if _is_missing(keys.server, keys.server_key):
                made += _make_server(keys, names, days)
            else:
                _check_server(keys, names)
        for name in nodes:
            if _is_missing(keys.public(name), keys.node(name)):
                made += _make_node(keys, name)
    except OSError as error:
        raise UsageError(f"--keys: cannot write to {keys.folder}: {error.strerror}; choose another folder") from error
    return made


def _check_server(keys: Keys, names: Sequence[x509.GeneralName]) -> None:
    """Check that the server's certificate is valid and names every host."""
    anew = f"delete {keys.server} and {keys.server_key}, make them again with every --host, and restart the SuperLink"
    try:
        certificate = x509.load_pem_x509_certificate(keys.server.read_bytes())
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise UsageError(f"{keys.server} is damaged ({error}); {anew}") from error
    absent = ", ".join(str(name.value) for name in names if name not in named)
    if absent:
        raise UsageError(f"--host: the certificate {keys.server} is there and does not name {absent}; {anew}")
    end = certificate.not_valid_after_utc
    if end < datetime.datetime.now(datetime.UTC):
        raise UsageError(f"the certificate {keys.server} has expired on {end:%Y-%m-%d}; {anew}")


def _is_missing(public: Path, private: Path) -> bool:
    there = [file for file in (public, private) if file.exists()]
    if len(there) == 1:
        raise UsageError(f"{there[0]} is there without its other half; delete it, or restore the other")
    return not there


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        with contextlib.suppress(UnicodeError):  # for a label that is empty or too long
            name = host.encode("idna").decode("ascii")
            if name and not any(character.isspace() or character in "/:" for character in name):
                return x509.DNSName(name)
        raise UsageError(f"--host: expected a host's name or IP address without a port, got {host!r}") from None


def _make_ca(keys: Keys) -> list[Path]:
    private = ec.generate_private_key(CURVE())
    name = _common_name("fedhess federation")
    certificate = _certificate(name, private.public_key(), CA_DAYS, issuer=name, authority=True)
    _write(keys.ca_key, _pem(private), secret=True)
    _write(keys.ca, _signed(certificate, private))
    return [keys.ca, keys.ca_key]


def _make_server(keys: Keys, names: Sequence[x509.GeneralName], days: int) -> list[Path]:
    keys.require(keys.ca, keys.ca_key)
    issuer = x509.load_pem_x509_certificate(keys.ca.read_bytes())
    try:
        authority = serialization.load_pem_private_key(keys.ca_key.read_bytes(), None)
    except (ValueError, TypeError) as error:  # damaged, or under a password
        raise UsageError(f"{keys.ca_key} cannot be read: {error}; restore it as `keys` made it") from error
    if not isinstance(authority, ec.EllipticCurvePrivateKey) or authority.public_key() != issuer.public_key():
        raise UsageError(f"{keys.ca_key} is not the key of {keys.ca}; restore the other half of one of them")
    private = ec.generate_private_key(CURVE())
    certificate = (
        _certificate(_common_name("fedhess SuperLink"), private.public_key(), days, issuer=issuer.subject)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    _write(keys.server_key, _pem(private), secret=True)
    _write(keys.server, _signed(certificate, authority))
    return [keys.server, keys.server_key]


def _make_node(keys: Keys, name: str) -> list[Path]:
    private = ec.generate_private_key(CURVE())
    _write(keys.node(name), _pem(private, serialization.PrivateFormat.OpenSSH), secret=True)
    openssh = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(keys.public(name), openssh + b"\n")
    return [keys.public(name), keys.node(name)]


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(
    name: x509.Name, key: ec.EllipticCurvePublicKey, days: int, *, issuer: x509.Name, authority: bool = False
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    flags = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    usage = dict.fromkeys((*flags, "encipher_only", "decipher_only"), False)
    usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )


def _signed(certificate: x509.CertificateBuilder, authority: ec.EllipticCurvePrivateKey) -> bytes:
    return certificate.sign(authority, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def _pem(
    private: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8
) -> bytes:
    return private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(file: Path, content: bytes, *, secret: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644), "wb") as stream:
        stream.write(content)
