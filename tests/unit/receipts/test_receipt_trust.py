from __future__ import annotations

import pytest

from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.receipts.draw import Drawn
from bentoml_secure.receipts.trust import MAX_WEIGHT_RATIO, parse_trust, write_trust
from bentoml_secure.scenario import Independence
from bentoml_secure.testing.deployment import Deployment

DIGEST = digest_json("anything")
OTHER = digest_json("something else")

TRUST = f"""\
version = 1
plan_digests = ["{DIGEST}"]
config_digests = ["{DIGEST}"]
package_digests = {{ unchecked = "built from source" }}
minimum_quorum = 2
independence = "platform"

[scenarios]
general = "{DIGEST}"
"of two words" = "{OTHER}"

[policy]
version = 1
max_age_seconds = 300
allow = ["simulated"]

[policy.simulated]
roots = ["sha256:{"00" * 32}"]
"""


def edited(old: str, new: str) -> bytes:
    assert old in TRUST
    return TRUST.replace(old, new, 1).encode()


def test_what_it_says() -> None:
    trust = parse_trust(TRUST.encode())
    assert trust.plan_digests == (DIGEST,)
    assert trust.package_digests == Unchecked("built from source")
    assert trust.scenarios == {"general": DIGEST, "of two words": OTHER}
    assert trust.minimum_quorum == 2
    assert trust.independence is Independence.PLATFORM
    assert trust.policy.max_age_seconds == 300


def test_a_draw_is_demanded_where_it_says_so() -> None:
    assert parse_trust(TRUST.encode()).draw is Drawn.ASSERTED
    for drawn in Drawn:
        data = edited("minimum_quorum", f'draw = "{drawn}"\nminimum_quorum')
        assert parse_trust(data).draw is drawn


def test_a_referee_s_word_is_taken_where_it_says_so() -> None:
    assert parse_trust(TRUST.encode()).referee is False
    for said, taken in (("true", True), ("false", False)):
        data = edited("minimum_quorum", f"referee = {said}\nminimum_quorum")
        assert parse_trust(data).referee is taken


def test_weights_lie_as_far_apart_as_reputations_do() -> None:
    assert parse_trust(TRUST.encode()).weight_ratio == MAX_WEIGHT_RATIO == 200
    for ratio in ("1", "1.0", "4.5", "200"):
        data = edited("minimum_quorum", f"weight_ratio = {ratio}\nminimum_quorum")
        assert parse_trust(data).weight_ratio == float(ratio)


def test_whose_proofs_and_under_which_strings() -> None:
    trust = parse_trust(TRUST.encode())
    assert (trust.manifest_signers, trust.srs, trust.unsafe_srs) == ((), (), False)
    signer, srs = "sha256:" + "0" * 64, "sha256-srs-v1:" + "1" * 64
    lines = f'manifest_signers = ["{signer}"]\nsrs = ["{srs}"]\nunsafe_srs = true\n'
    trust = parse_trust(edited("minimum_quorum", f"{lines}minimum_quorum"))
    assert trust.manifest_signers == (signer,)
    assert trust.srs == (srs,)
    assert trust.unsafe_srs is True
    assert trust.polycommit_links is False
    lines += "polycommit_links = true\n"
    trust = parse_trust(edited("minimum_quorum", f"{lines}minimum_quorum"))
    assert trust.polycommit_links is True


def test_scenarios_may_be_left_out_with_a_reason() -> None:
    lines = f'general = "{DIGEST}"\n"of two words" = "{OTHER}"'
    trust = parse_trust(edited(lines, 'unchecked = "one only"'))
    assert trust.scenarios == Unchecked("one only")


def test_a_scenario_called_unchecked_is_a_scenario() -> None:
    lines = f'general = "{DIGEST}"\n"of two words" = "{OTHER}"'
    trust = parse_trust(edited(lines, f'unchecked = "{DIGEST}"'))
    assert trust.scenarios == {"unchecked": DIGEST}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\xff", "not TOML"),
        (b"version =", "not TOML"),
        (b" " * (1 << 20) + b" ", "1048577 bytes"),
        (edited("version = 1\nplan", "version = true\nplan"), "version: got True"),
        (edited("version = 1\nplan", "version = 2\nplan"), "version: got 2"),
        (edited("version = 1\n", "version = 1\nallow_debug = true\n"), "unknown key"),
        (edited("minimum_quorum = 2\n", ""), "'minimum_quorum' is missing"),
        (edited("minimum_quorum = 2", "minimum_quorum = 0"), "minimum_quorum: got 0"),
        (edited("minimum_quorum = 2", "minimum_quorum = 2.0"), "got 2.0"),
        (edited("minimum_quorum = 2", "minimum_quorum = true"), "got True"),
        (edited('"platform"', '"host"'), "independence: got 'host'"),
        (edited('"platform"', "1"), "independence: got 1"),
        (edited("minimum_", 'draw = "any"\nminimum_'), "draw: got 'any'"),
        (edited("minimum_", "draw = true\nminimum_"), "draw: got True"),
        (edited("minimum_", "draw = []\nminimum_"), r"draw: got \[\]"),
        (edited("minimum_", 'referee = "yes"\nminimum_'), "referee: got 'yes'"),
        (edited("minimum_", "referee = 1\nminimum_"), "referee: got 1"),
        (edited("minimum_", "unsafe_srs = 1\nminimum_"), "unsafe_srs: got 1"),
        (edited("minimum_", "srs = []\nminimum_"), "srs"),
        (edited("minimum_", 'srs = ["sha256:00"]\nminimum_'), "srs"),
        (
            edited("minimum_", 'srs = {unchecked = "why"}\nminimum_'),
            "srs: want a list; it is never left unchecked",
        ),
        (
            edited("minimum_", 'manifest_signers = ["owner"]\nminimum_'),
            "manifest_signers",
        ),
        (edited("minimum_", "weight_ratio = 0.9\nminimum_"), "weight_ratio: got 0.9"),
        (edited("minimum_", "weight_ratio = 200.1\nminimum_"), "want 1 to 200"),
        (edited("minimum_", "weight_ratio = nan\nminimum_"), "weight_ratio: got nan"),
        (edited("minimum_", "weight_ratio = true\nminimum_"), "weight_ratio: got True"),
        (edited("minimum_", 'weight_ratio = "2"\nminimum_'), "weight_ratio: got '2'"),
        (edited(f'plan_digests = ["{DIGEST}"]', "plan_digests = []"), "at least one"),
        (edited(f'["{DIGEST}"]', '["sha256:00"]'), "want sha256-jcs-v1"),
        (edited(f'["{DIGEST}"]', "{ unchecked = true }"), "a reason of"),
        (edited(f'["{DIGEST}"]', "{ unchecked = '' }"), "a reason of"),
        (edited(f'["{DIGEST}"]', '{ uncheked = "x" }'), "unknown key"),
        (edited(f'general = "{DIGEST}"', "general = 1"), "scenarios 'general'"),
        (edited(f'general = "{DIGEST}"', 'unchecked = "x"'), "scenarios 'unchecked'"),
        (
            edited(
                f'[scenarios]\ngeneral = "{DIGEST}"', '[scenarios]\nunchecked = ""'
            ).replace(f'"of two words" = "{OTHER}"'.encode(), b""),
            "a reason of",
        ),
        (
            edited(f'[scenarios]\ngeneral = "{DIGEST}"', "[scenarios]").replace(
                f'"of two words" = "{OTHER}"'.encode(), b""
            ),
            "at least one",
        ),
        (edited("max_age_seconds = 300", "max_age_seconds = 0"), "max_age_seconds"),
        (edited('allow = ["simulated"]', "allow = []"), "at least one"),
    ],
)
def test_what_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        parse_trust(data)


def test_what_is_written_is_read(deployment: Deployment) -> None:
    written = write_trust(
        plan_digests=[DIGEST],
        config_digests=[DIGEST, OTHER],
        package_digests=[OTHER],
        scenarios={"general": DIGEST, 'odd "name" \\ \u2603 \n': OTHER},
        policy=deployment.policy,
        minimum_quorum=3,
        independence=Independence.VENDOR,
        draw=Drawn.COMMITTED,
        referee=True,
        weight_ratio=4.5,
    )
    trust = parse_trust(written.encode())
    assert trust.config_digests == tuple(sorted((DIGEST, OTHER)))
    assert trust.scenarios == {"general": DIGEST, 'odd "name" \\ \u2603 \n': OTHER}
    assert trust.policy == deployment.policy
    assert trust.independence is Independence.VENDOR
    assert trust.draw is Drawn.COMMITTED
    assert (trust.referee, trust.weight_ratio) == (True, 4.5)


def test_what_would_be_refused_is_not_written(deployment: Deployment) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        write_trust(
            plan_digests=[],
            config_digests=[DIGEST],
            package_digests=[DIGEST],
            scenarios={"general": Digest(DIGEST)},
            policy=deployment.policy,
            minimum_quorum=2,
        )
