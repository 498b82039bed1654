"""SEV-SNP reports and endorsements of any content: read as written, or refused."""

from __future__ import annotations

import functools
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.amd_certificates import find_amd_endorsements
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.snp_policy import SNP_KEYS
from bentoml_secure.attestation.tees.snp_report import (
    FIELDS,
    POLICY_BITS,
    Product,
    Tcb,
    parse_report,
    unknown_policy_bits,
)
from bentoml_secure.errors import ConfigurationError, SecureError
from bentoml_secure.testing.amd_pki import AmdPki, encode_tcb

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LEVEL = st.integers(0, 255)
CHECKED = frozenset(
    {"version", "signature_algorithm", "key_info", "report_data", "reported_tcb"}
    | {"cpuid", "chip_id", "signature"}
)


def of_form(form: str) -> st.SearchStrategy[Any]:
    """Return values that a field's form holds."""
    if form.endswith("s"):
        length = int(form[:-1])
        return st.binary(min_size=length, max_size=length)
    return st.integers(0, 2 ** {"I": 32, "Q": 64}[form] - 1)


@functools.cache
def pki(product: Product = Product.MILAN) -> AmdPki:
    return AmdPki(now=NOW, product=product)


@settings(max_examples=40)
@given(
    st.sampled_from(Product),
    st.integers(2, 5),
    st.binary(min_size=64, max_size=64),
    st.fixed_dictionaries(
        {
            name: of_form(form)
            for name, form in FIELDS
            if name not in CHECKED and not name.startswith("reserved_")
        }
    ),
)
def test_what_is_signed_is_what_is_claimed(
    product: Product, version: int, report_data: bytes, fields: dict[str, Any]
) -> None:
    chip = pki(product)
    report = chip.sign_report(report_data, version=version, **fields)
    claims = SevSnp(roots=chip.roots).verify(
        Evidence(kind="sev-snp", blob=report), chip.endorsements(), now=NOW
    )
    assert claims.report_data == report_data
    got = claims.claims
    assert int(got["policy"]["raw"], 16) == fields["policy"]
    assert int(got["platform_info"]["raw"], 16) == fields["platform_info"]
    for name in ("measurement", "host_data", "id_key_digest", "report_id"):
        assert got[name] == fields[name].hex()
    assert (got["vmpl"], got["guest_svn"]) == (fields["vmpl"], fields["guest_svn"])
    assert claims.platform_id == chip.hwid.hex()


@given(LEVEL, LEVEL, LEVEL, LEVEL, st.none() | LEVEL)
def test_a_tcb_reads_back(
    bootloader: int, tee: int, snp: int, microcode: int, fmc: int | None
) -> None:
    tcb = Tcb(bootloader=bootloader, tee=tee, snp=snp, microcode=microcode, fmc=fmc)
    raw = encode_tcb(tcb)
    assert Tcb.from_bytes(raw, turin=fmc is not None) == tcb
    assert len(raw) == 8


@given(st.integers(0, 2**64 - 1))
def test_each_policy_bit_is_known_or_not(policy: int) -> None:
    known = {*range(16), *POLICY_BITS.values()}
    unknown = {bit for bit in range(64) if policy >> bit & 1} - known
    unknown ^= {17}
    assert unknown_policy_bits(policy) == sum(1 << bit for bit in unknown)


@given(st.binary(max_size=1300))
def test_any_bytes_as_a_report(data: bytes) -> None:
    with suppress(SecureError):
        parse_report(data)


@settings(max_examples=60)
@given(
    st.sampled_from(["vcek", "vlek", "ask", "ark", "crl"]),
    st.integers(0, 2000),
    st.integers(0, 3),
    st.binary(max_size=3),
)
def test_hurt_endorsements(which: str, at: int, dropped: int, inserted: bytes) -> None:
    der = pki().issue_crl([1]) if which == "crl" else getattr(pki(), which)
    at %= len(der)
    hurt = der[:at] + inserted + der[at + dropped :]
    with suppress(SecureError):
        find_amd_endorsements([hurt])


@given(
    st.dictionaries(
        st.sampled_from(sorted(SNP_KEYS)),
        st.recursive(
            st.none() | st.booleans() | st.integers(-1, 300) | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["unchecked", "snp", "tee", "bootloader", "microcode"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=6,
        ),
    )
)
def test_any_table_is_a_policy_or_a_mistake(table: dict[str, Any]) -> None:
    try:
        policy = SevSnp().parse_policy(table)
    except ConfigurationError:
        return
    assert SevSnp().parse_policy(policy.to_json()) == policy
