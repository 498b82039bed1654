"""What a target demands of what it read."""

from __future__ import annotations


def require_same(got: object, want: object) -> None:
    """Fail unless something reads back to what it was read from.

    Raises:
        AssertionError: It does not: a fault, not a refusal.
    """
    if got != want:
        raise AssertionError(f"got {got!r:.2000}, want {want!r:.2000}")
