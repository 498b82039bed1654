"""The owner's policy file and the wrapping key's."""

from __future__ import annotations

from pathlib import Path

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import CheckFailedError, ConfigurationError
from bentoml_secure.keys.broker_policy import MAX_POLICY_BYTES, parse_broker_policy
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.keys.wrapping_key import (
    WrappingKey,
    create_wrapping_key,
    parse_wrapping_key,
    read_wrapping_key,
)

PLAN, CONFIG, PACKAGE = (digest_json(name) for name in ("plan", "config", "package"))
MODEL = f"""
[[models]]
plan = "{PLAN}"
roles = ["runner"]
config_digests = ["{CONFIG}"]
package_digests = ["{PACKAGE}"]
"""
APPRAISAL = f"""
[appraisal]
version = 1
max_age_seconds = 300
allow = ["simulated"]
[appraisal.simulated]
roots = ["sha256:{"0" * 64}"]
measurement = ["{"1" * 64}"]
"""
POLICY = f"version = 1\n{MODEL}{APPRAISAL}"


def test_a_policy_is_read() -> None:
    policy = parse_broker_policy(POLICY.encode())
    (model,) = policy.models.values()
    assert model.plan == PLAN
    assert model.roles == (Role.RUNNER,)
    assert model.config_digests == (CONFIG,)
    assert model.packages == (PACKAGE,)
    assert policy.appraisal.allow == ("simulated",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1\n\n[[models]]", "version = 2\n[[models]]", "version: got 2"),
        ("version = 1\n\n[[models]]", "version = true\n[[models]]", "got True"),
        ("version = 1\n\n[[models]]", "[[models]]", "version: got None"),
        ("version = 1\n\n", "version = 1\nallow_debug = true\n", "'allow_debug'"),
        ("roles =", "role =", "unknown key 'role'"),
        (MODEL, "", "at least one"),
        (MODEL, "models = []\n", "at least one"),
        (MODEL, "models = [3]\n", "want a table"),
        (MODEL, MODEL + MODEL, "stands there twice"),
        (PLAN, "sha256:00", "plan: got"),
        (f'plan = "{PLAN}"\n', "", "plan: got None"),
        ('"runner"', '"entry"', "want runner or prover"),
        ('["runner"]', "[]", "at least one"),
        ('roles = ["runner"]\n', "", "roles: got None"),
        (f'["{CONFIG}"]', "[]", "config_digests"),
        (f'["{CONFIG}"]', '{ unchecked = "why" }', "config_digests"),
        (f'["{PACKAGE}"]', "[]", "package_digests"),
        (f'["{PACKAGE}"]', '{ unchecked = "" }', "a reason of 1"),
        (APPRAISAL, "", r"\[appraisal\] is missing"),
        ("max_age_seconds = 300", "max_age_seconds = 0", "max_age_seconds"),
        ("version = 1\n\n", "version = \n", "is not TOML"),
    ],
)
def test_what_is_no_policy(old: str, new: str, said: str) -> None:
    text = POLICY.replace(old, new, 1)
    assert text != POLICY
    with pytest.raises(ConfigurationError, match=said):
        parse_broker_policy(text.encode())


def test_bytes_that_are_no_text_and_files_without_end() -> None:
    with pytest.raises(ConfigurationError, match="is not TOML"):
        parse_broker_policy(b"\xff")
    with pytest.raises(ConfigurationError, match="want at most"):
        parse_broker_policy(b" " * (MAX_POLICY_BYTES + 1))


def test_a_wrapping_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "wrapping.key"
    made = create_wrapping_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_wrapping_key(path).key_id == made.key_id
    assert path.read_text().strip() not in repr(made)
    with pytest.raises(ConfigurationError, match="cannot be made"):
        create_wrapping_key(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="got mode 0644"):
        read_wrapping_key(path)


@pytest.mark.parametrize("text", ["", "00", "G" * 64, "AB" * 32, "\xe9" * 64])
def test_what_is_no_wrapping_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrapping.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="lower-case hex digits") as caught:
        read_wrapping_key(path)
    assert len(text) < 64 or text not in str(caught.value)
    with pytest.raises(ConfigurationError, match="wrapping key from the environment"):
        parse_wrapping_key(text, what="from the environment")


def test_a_wrapped_key_opens_only_as_what_it_was_wrapped() -> None:
    wrapping, key = WrappingKey(SegmentKey.generate()), SegmentKey.generate()
    wrapped = wrapping.wrap(key, segment=CONFIG, plan=PLAN)
    assert key.reveal() not in wrapped
    assert wrapped != wrapping.wrap(key, segment=CONFIG, plan=PLAN)
    right = {"segment": CONFIG, "plan": PLAN, "key_id": key.key_id}
    assert wrapping.unwrap(wrapped, **right) == key  # type: ignore[arg-type]
    other = SegmentKey.generate().key_id
    for wrong in ({"segment": PLAN}, {"plan": CONFIG}, {"key_id": other}):
        with pytest.raises(CheckFailedError, match="wrapped_key"):
            wrapping.unwrap(wrapped, **right | wrong)  # type: ignore[arg-type]
    with pytest.raises(CheckFailedError, match="wrapped_key"):
        WrappingKey(SegmentKey.generate()).unwrap(wrapped, **right)  # type: ignore[arg-type]
