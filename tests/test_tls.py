"""HTTPS, spoken by the service as it is run."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from config import ConfigError, Settings, load_settings
from sensevoice_service.probe import is_well
from tests.server_process import PATIENT_S, running, until_ready

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(_pem(key, serialization.NoEncryption()))
    (folder / "locked.pem").write_bytes(_pem(key, serialization.BestAvailableEncryption(b"pw")))
    return folder / "cert.pem", folder / "key.pem"


def _pem(key: ec.EllipticCurvePrivateKey, lock: serialization.KeySerializationEncryption) -> bytes:
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, form, lock)


def test_with_a_certificate_https_is_spoken(pair: tuple[Path, Path]) -> None:
    certificate, key = map(str, pair)
    inherited = {
        name: value for name, value in os.environ.items() if name not in Settings.model_fields
    }
    settings = {"MODEL": "demo", "PORT": "0", "TLS_CERTFILE": certificate, "TLS_KEYFILE": key}
    with running("api.py", folder=ROOT, environment=inherited, **settings) as server:
        address = server.logged(r"Uvicorn running on (https://\S+)")[1]
        trusted = ssl.create_default_context(cafile=certificate)
        with httpx.Client(verify=trusted, trust_env=False, timeout=PATIENT_S) as client:
            assert client.get(f"{address}/health/live").json() == {"status": "alive"}
            with pytest.raises(httpx.TransportError):
                client.get(f"{address.replace('https', 'http')}/health/live")
            client.base_url = address
            until_ready(client)
        port = int(address.rpartition(":")[2])
        assert is_well(load_settings(PORT=port, TLS_CERTFILE=certificate, TLS_KEYFILE=key))
        assert not is_well(load_settings(PORT=port))


def test_one_file_may_hold_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in pair))
    assert load_settings(TLS_CERTFILE=str(both)).TLS_KEYFILE == ""


@pytest.mark.parametrize("key", ["", "locked.pem", "cert.pem"])
def test_a_pair_that_does_not_fit_ends_the_start(pair: tuple[Path, Path], key: str) -> None:
    certificate = pair[0]
    key_file = str(certificate.with_name(key)) if key else ""
    with pytest.raises(ConfigError, match="TLS_CERTFILE or TLS_KEYFILE cannot be used"):
        load_settings(TLS_CERTFILE=str(certificate), TLS_KEYFILE=key_file)
