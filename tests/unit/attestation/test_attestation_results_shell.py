"""Tokens verified as docs/attestation-results.md says, without this package."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.unit.attestation.result_tokens import (
    ALGORITHMS,
    EC,
    ED,
    NAMES,
    Pair,
    changed,
    issue,
    tdx_result,
)

PAGE = Path(__file__).parents[3] / "docs" / "attestation-results.md"
_BLOCK = re.compile(r"^```sh (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = dict(_BLOCK.findall(PAGE.read_text()))

needs_tools = pytest.mark.skipif(
    shutil.which("openssl") is None or shutil.which("jq") is None,
    reason="openssl or jq is not installed",
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_with_nothing_but_a_signature(algorithm: str) -> None:
    pair = ALGORITHMS[algorithm]
    message, _, text = issue(pair=pair).rpartition(".")
    signature = _decode(text)
    key = load_pem_public_key(pair.public_pem)

    def check(signed: bytes) -> None:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, signed)
        else:
            assert isinstance(key, EllipticCurvePublicKey)
            r, s = (int.from_bytes(signature[i : i + 32], "big") for i in (0, 32))
            key.verify(encode_dss_signature(r, s), signed, ECDSA(SHA256()))

    check(message.encode())
    with pytest.raises(InvalidSignature):
        check(message.encode() + b"A")
    claims = json.loads(_decode(message.split(".")[1]))
    assert claims["submods"]["cpu0"]["ear_status"] == "affirming"


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def script(
    folder: Path, token: str, pair: Pair, name: str, **names: str
) -> tuple[int, str]:
    """Run the page's script on a token; return its exit code and last words."""
    (folder / "token.jwt").write_text(token + "\n")
    (folder / "issuer.pem").write_bytes(pair.public_pem)
    environment = {
        **os.environ,
        **{key.upper(): value for key, value in (NAMES | names).items()},
    }
    done = subprocess.run(
        ["bash", "-c", SCRIPTS[name]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).strip()


@needs_tools
@pytest.mark.parametrize("name", ["verify-es256.sh", "verify-eddsa.sh"])
class TestScript:
    @pytest.fixture
    def pair(self, name: str) -> Pair:
        return EC if name == "verify-es256.sh" else ED

    @pytest.fixture
    def token(self, pair: Pair) -> str:
        # The script judges by the machine's clock.
        now = datetime.now(UTC)
        return changed(
            issue(pair=pair),
            pair,
            iat=int(now.timestamp()),
            nbf=int(now.timestamp()),
            exp=int(now.timestamp()) + 120,
        )

    def test_accepted(self, tmp_path: Path, token: str, pair: Pair, name: str) -> None:
        assert script(tmp_path, token, pair, name) == (0, "accepted")

    @pytest.mark.parametrize("what", ["issuer", "audience", "nonce"])
    def test_other_names(
        self, tmp_path: Path, token: str, pair: Pair, name: str, what: str
    ) -> None:
        code, said = script(tmp_path, token, pair, name, **{what: "another-one"})
        assert code != 0
        assert "accepted" not in said

    @pytest.mark.parametrize(
        "change",
        [
            {"exp": 1},
            {"nbf": 99_999_999_999},
            {"eat_profile": "other"},
            {"ear_status": "warning"},
            {"submods": {}},
            {"submods": {"gpu0": {"ear_status": "affirming"}}},
        ],
        ids=str,
    )
    def test_other_claims(
        self,
        tmp_path: Path,
        token: str,
        pair: Pair,
        name: str,
        change: dict[str, object],
    ) -> None:
        code, said = script(tmp_path, changed(token, pair, **change), pair, name)
        assert code != 0
        assert "accepted" not in said

    def test_claims_that_nobody_signed(
        self, tmp_path: Path, token: str, pair: Pair, name: str
    ) -> None:
        signature = token.split(".")[2]
        header, payload, _ = changed(token, pair, iss="x").split(".")
        hurt = f"{header}.{payload}.{signature}"
        code, said = script(tmp_path, hurt, pair, name, issuer="x")
        assert code != 0
        assert "accepted" not in said

    def test_another_algorithm(self, tmp_path: Path, pair: Pair, name: str) -> None:
        other = ED if pair is EC else EC
        code, said = script(tmp_path, issue(pair=other), other, name)
        assert code != 0
        assert "accepted" not in said

    def test_a_simulation(self, tmp_path: Path, pair: Pair, name: str) -> None:
        now = datetime.now(UTC)
        token = changed(
            issue(tdx_result(simulated=True), pair=pair),
            pair,
            nbf=int(now.timestamp()),
            exp=int(now.timestamp()) + 120,
        )
        code, said = script(tmp_path, token, pair, name)
        assert code != 0
        assert "accepted" not in said
