"""Scenario files: read back, or refused with a configuration error."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from bentoml_secure.digest import Scheme
from bentoml_secure.errors import ConfigurationError, SecureError
from bentoml_secure.receipts.toml import write_toml
from bentoml_secure.scenario import Independence, Proving, Scenario, parse_scenarios

KINDS = ("nitro", "sev-snp", "simulated", "tdx")
PLACEMENTS = st.dictionaries(
    st.sampled_from(["*", "0", "1", "17", "999"]),
    st.lists(st.sampled_from(KINDS), min_size=1, unique=True).map(tuple),
    max_size=3,
)


PROVING: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"proof": Proving.EVERY, "proof_wait": True, "serve_proven": True},
        {"proof": Proving.EVERY, "proof_deadline_seconds": 1},
        {"proof": Proving.CHALLENGE, "challenge_rate": 0.25, "epoch_seconds": 5},
    ]
)


@st.composite
def scenarios(draw: st.DrawFn, name: str, *, proving: bool = True) -> Scenario:
    replicas = draw(st.integers(1, 64))
    return Scenario(
        name=name,
        replicas=replicas,
        quorum=draw(st.integers(replicas // 2 + 1, replicas)),
        deadline_ms=draw(st.integers(1, 3_600_000)),
        grace_ms=draw(st.integers(0, 60_000)),
        evidence_max_age_seconds=draw(st.integers(1, 86_400)),
        independence=draw(st.sampled_from(Independence)),
        placement=draw(PLACEMENTS),
        sealed=draw(st.booleans()),
        commitments=draw(st.sampled_from(Scheme)),
        **(draw(PROVING) if proving else {}),
    )


NAMES = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=8).filter(
        lambda name: name not in ("version", "minimum")
    ),
    min_size=1,
    max_size=3,
    unique=True,
)


@given(st.data(), NAMES)
def test_scenarios_come_back_from_toml(data: st.DataObject, names: list[str]) -> None:
    made = {name: data.draw(scenarios(name)) for name in names}
    document: dict[str, Any] = {"version": 1, "minimum": names[-1]}
    for name, scenario in made.items():
        fields = scenario.to_json()
        del fields["name"]
        document[name] = fields
    parsed = parse_scenarios(write_toml(document).encode())
    assert (parsed.minimum, parsed.by_name) == (names[-1], made)
    assert {n: s.digest for n, s in parsed.by_name.items()} == {
        n: s.digest for n, s in made.items()
    }


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
)
@example(b"version = 1\nminimum = 'a'\n[a]\nreplicas = " + b"9" * 5000)
@example(b"x = " + b"{a=" * 10_000)
@example(b"version = 1\n" + b"a." * 300 + b"b = 1")
def test_any_bytes_are_scenarios_or_refused(data: bytes) -> None:
    try:
        parsed = parse_scenarios(data)
    except ConfigurationError:
        return
    assert parsed.select(None).name == parsed.minimum


@given(scenarios("a", proving=False), scenarios("b", proving=False))
def test_weaker_is_what_demands_less(one: Scenario, other: Scenario) -> None:
    assert one.weaker_than(one) == []
    less = one.replicas < other.replicas or one.quorum < other.quorum
    older = one.evidence_max_age_seconds > other.evidence_max_age_seconds
    order = ["none", "platform", "vendor"]
    nearer = order.index(one.independence) < order.index(other.independence)
    # Segment 500 is one that no placement here names.
    wider = any(
        not open_to(one, segment) <= open_to(other, segment)
        for segment in (0, 1, 17, 500, 999)
    )
    bare = other.sealed and not one.sealed
    weaker = less or older or nearer or wider or bare
    assert bool(one.weaker_than(other)) is weaker


def open_to(scenario: Scenario, segment: int) -> set[str]:
    """Return the kinds that a segment is open to, of all that there are."""
    kinds = scenario.kinds(segment)
    return {*KINDS, "any other"} if kinds is None else set(kinds)


@given(
    st.sampled_from(sorted(Scenario.__slots__)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
)
def test_anything_in_a_field_reads_back_or_is_refused(field: str, value: Any) -> None:
    document: dict[str, Any] = {
        "name": "a",
        "replicas": 3,
        "quorum": 2,
        "deadline_ms": 1,
        "grace_ms": 0,
        "evidence_max_age_seconds": 1,
        "independence": "platform",
        "placement": {"0": ["tdx"]},
        "sealed": True,
        "spares": 0,
        "escalation": 0,
        "referee": False,
        "mode": "lock-step",
        "commit_reveal": False,
        "audit_rate": 0,
        "proof": "none",
        "proof_deadline_seconds": 600,
        "proof_wait": False,
        "serve_proven": False,
        "challenge_rate": 0,
        "epoch_seconds": 60,
        "commitments": "hmac-sha256",
        field: value,
    }
    try:
        scenario = Scenario.from_json(document)
    except SecureError:
        return
    assert scenario.to_json() == document
