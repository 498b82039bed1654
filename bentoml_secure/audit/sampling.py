"""Which requests are recomputed: drawn from what the committees are drawn from. Pure.

Of HMAC-SHA256(seed, "bentoml-secure/audit/v1") the first 8 bytes are n, big-endian; a
request is audited if n / 2^64 is below the rate, as exact fractions: at 0 none is, at
1 every one.

No replica can tell before it answers, for none is shown the entry's ``r`` until the
receipt is. The entry can, once it has the caller's nonce: an entry that colludes with
replicas lets them lie only where no audit follows. Audits show replicas that lie for
themselves; against the entry stands its evidence.
"""

from __future__ import annotations

import hmac

from bentoml_secure.consensus.committee import SEED_BYTES
from bentoml_secure.digest import is_finite_number
from bentoml_secure.errors import ConfigurationError

AUDIT_LABEL = b"bentoml-secure/audit/v1"

_LOT_BYTES = 8


def audited(seed: bytes, rate: float) -> bool:
    """Tell whether a request is recomputed.

    Args:
        seed: Of ``consensus.committee.seed``, 32 bytes.
        rate: Share of the requests, 0 to 1.

    Raises:
        ConfigurationError: A rate that is no share, or a seed of another length.
    """
    if not (is_finite_number(rate) and 0 <= rate <= 1):
        raise ConfigurationError(f"audit rate: got {rate}, want 0 to 1")
    if len(seed) != SEED_BYTES:
        raise ConfigurationError(f"seed: got {len(seed)} bytes, want {SEED_BYTES}")
    mac = hmac.digest(seed, AUDIT_LABEL, "sha256")
    lot = int.from_bytes(mac[:_LOT_BYTES], "big")
    numerator, denominator = rate.as_integer_ratio()
    return lot * denominator < numerator << (8 * _LOT_BYTES)
