"""Certificates that a strict client accepts for the right names only, and node keys that Flower takes."""

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedhess.base.errors import UsageError
from fedhess.deploy.keys import Keys, make_keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys")
    make_keys(made, hosts=["fl.example.org", "10.1.2.3"], nodes=["photo", "sketch"], days=30)
    return made


def verify(keys: Keys, subject: x509.GeneralName, *, authority: Path | None = None) -> None:
    ca = x509.load_pem_x509_certificate((authority or keys.ca).read_bytes())
    leaf = x509.load_pem_x509_certificate(keys.server.read_bytes())
    PolicyBuilder().store(Store([ca])).build_server_verifier(subject).verify(leaf, [])


def test_the_server_is_trusted_under_every_name_given_and_on_loopback(keys: Keys) -> None:
    for name in ("fl.example.org", "localhost"):
        verify(keys, x509.DNSName(name))
    for address in ("10.1.2.3", "127.0.0.1", "::1"):
        verify(keys, x509.IPAddress(ipaddress.ip_address(address)))


def test_it_is_not_trusted_under_another_name_nor_by_another_authority(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        verify(keys, x509.DNSName("other.example.org"))
    other = Keys(tmp_path / "other")
    make_keys(other, hosts=[], nodes=[], days=30)
    with pytest.raises(VerificationError):
        verify(keys, x509.DNSName("localhost"), authority=other.ca)


def test_the_server_certificate_ends_after_the_days_given(keys: Keys) -> None:
    leaf = x509.load_pem_x509_certificate(keys.server.read_bytes())
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)


def test_a_nodes_keys_are_a_pair_on_a_curve_that_flower_takes(keys: Keys) -> None:
    assert [file.name for file in keys.public_keys()] == ["photo.pub", "sketch.pub"]
    private = serialization.load_ssh_private_key(keys.node("sketch").read_bytes(), None)
    public = serialization.load_ssh_public_key(keys.public("sketch").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_private_keys_are_for_the_owner_alone(keys: Keys) -> None:
    for file in (keys.ca_key, keys.server_key, keys.node("sketch")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_second_call_makes_what_is_new_and_overwrites_nothing(keys: Keys) -> None:
    before = {file: file.read_bytes() for file in keys.folder.rglob("*") if file.is_file()}
    made = make_keys(keys, hosts=["fl.example.org"], nodes=["photo", "cartoon"], days=30)
    assert made == [keys.public("cartoon"), keys.node("cartoon")]
    assert all(file.read_bytes() == content for file, content in before.items())
    keys.server.unlink()
    keys.server_key.unlink()
    assert make_keys(keys, hosts=["elsewhere"], nodes=[], days=30) == [keys.server, keys.server_key]
    verify(keys, x509.DNSName("elsewhere"))


def test_a_certificate_that_lacks_a_host_or_has_expired_is_named(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match=r"--host: the certificate .*server.pem is there and does not name b.org, 10.9.9.9"
    ):
        make_keys(keys, hosts=["fl.example.org", "b.org", "10.9.9.9"], nodes=["new"], days=30)
    assert not keys.node("new").exists()
    assert make_keys(keys, hosts=["fl.example.org"], nodes=[], days=30) == []
    keys.server.unlink()
    keys.server_key.unlink()
    make_keys(keys, hosts=["fl.example.org"], nodes=[], days=0)
    with pytest.raises(
        UsageError, match=r"server.pem has expired on .*; delete .*server.pem and .*server.key, make them"
    ):
        make_keys(keys, hosts=["fl.example.org"], nodes=[], days=30)
    keys.server.write_text("no certificate", encoding="utf-8")
    with pytest.raises(UsageError, match=r"server.pem is damaged"):
        make_keys(keys, hosts=[], nodes=[], days=30)


def _pem(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_pem(ec.generate_private_key(ec.SECP384R1())), "ca.key is not the key of .*ca.crt"),
        (_pem(ec.generate_private_key(ec.SECP384R1()), b"secret"), "ca.key cannot be read: Password was not given"),
        (_pem(rsa.generate_private_key(65537, 2048)), "ca.key is not the key of .*ca.crt"),
    ],
    ids=["another's", "locked", "RSA"],
)
def test_a_key_that_cannot_sign_for_the_authority_is_named(keys: Keys, other: bytes, message: str) -> None:
    keys.server.unlink()
    keys.server_key.unlink()
    keys.ca_key.write_bytes(other)
    with pytest.raises(UsageError, match=message):
        make_keys(keys, hosts=["fl.example.org"], nodes=[], days=30)
    assert not keys.server.exists()


def test_a_nodes_machine_makes_its_own_keys_without_an_authority(keys: Keys, tmp_path: Path) -> None:
    own = Keys(tmp_path / "node")
    assert make_keys(own, hosts=[], nodes=["photo"], days=30) == [own.public("photo"), own.node("photo")]
    assert not own.ca.exists()
    keys.ca_key.unlink()  # it is in a safe
    assert make_keys(keys, hosts=["fl.example.org"], nodes=["new"], days=30) == [keys.public("new"), keys.node("new")]
    keys.server.unlink()
    keys.server_key.unlink()
    with pytest.raises(UsageError, match=r"there is no .*ca.key; copy it from where"):
        make_keys(keys, hosts=["fl.example.org"], nodes=[], days=30)
    assert keys.ca.exists()


@pytest.mark.parametrize(
    ("hosts", "nodes", "message"),
    [
        *(
            ([host], [], "--host: expected a host's name or IP address")
            for host in ("", "a b", "host:8000", "https://h", "fl..example.org", 70 * "h")
        ),
        *(([], [node], "--node: expected a name that can be a file's") for node in ("", ".hidden", "a/b")),
    ],
)
def test_what_is_no_name_is_named(hosts: list[str], nodes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make_keys(Keys(tmp_path), hosts=hosts, nodes=nodes, days=1)


def test_half_a_pair_a_damaged_key_and_a_folder_that_cannot_be_are_named(keys: Keys, tmp_path: Path) -> None:
    keys.server.unlink()
    with pytest.raises(UsageError, match=r"server.key is there without its other half"):
        make_keys(keys, hosts=[], nodes=[], days=1)
    keys.server_key.unlink()
    keys.ca_key.write_bytes(b"no key")
    with pytest.raises(UsageError, match=r"ca.key cannot be read"):
        make_keys(keys, hosts=[], nodes=[], days=1)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"--keys: cannot write to .*file.*choose another folder"):
        make_keys(Keys(tmp_path / "file"), hosts=[], nodes=[], days=1)
