"""What a scenario may demand, by name."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from bentoml_secure.attestation.evidence import VerifiedClaims


class Independence(StrEnum):
    """What the replicas of a quorum must not share, from verified evidence."""

    NONE = "none"
    PLATFORM = "platform"
    VENDOR = "vendor"

    def voice(self, replica: str, claims: VerifiedClaims | None) -> str:
        """Return the voice that a replica votes with: equal ones count once.

        Args:
            replica: The replica's name.
            claims: Of its accepted evidence; None where it showed none. It then has
                a voice of its own, for it cannot vote.
        """
        if self is Independence.NONE or claims is None:
            return replica
        # The word in front keeps a replica's name and an empty id apart.
        match self:
            case Independence.PLATFORM:
                return f"platform {claims.platform_id}"
            case Independence.VENDOR:
                return f"vendor {claims.vendor}"
            case _:
                assert_never(self)

    def weaker_than(self, other: Independence) -> bool:
        """Tell whether ``other`` demands more."""
        demands = list(Independence)
        return demands.index(self) < demands.index(other)


class Mode(StrEnum):
    """Where replicas are compared: after every segment, or at the chain's end."""

    LOCK_STEP = "lock-step"
    END_TO_END = "end-to-end"


class Proving(StrEnum):
    """Which requests are proven in zero knowledge."""

    NONE = "none"
    CHALLENGE = "challenge"
    EVERY = "every"

    def weaker_than(self, other: Proving) -> bool:
        """Tell whether ``other`` demands more."""
        demands = list(Proving)
        return demands.index(self) < demands.index(other)
