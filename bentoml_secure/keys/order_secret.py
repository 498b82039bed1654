"""The secret that a segment's provers' order key follows from.

A prover of a sealed set-up has it from its prover key: every replica has the same, and
it is on no disk. One of a plain set-up draws it once and keeps it in a file of mode
0600, so that what waits in its queue opens after a restart. That file protects orders
from other users of the host, not from its superuser.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

from bentoml_secure.digest import parse_hex
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.keys.key_file import new_secret, read_secret
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.proofs.orders import KEY_BYTES

_LABEL = b"bentoml-secure/order-secret/v1"
_NAME_BYTES = 8

logger = logging.getLogger("bentoml_secure")


def order_secret(key: SegmentKey) -> bytes:
    """Return the secret that follows from a prover key."""
    return key.derive(b"", _LABEL)


def read_or_make_order_secret(path: Path) -> bytes:
    """Return the secret in a file; whoever comes first makes the file.

    Args:
        path: In a folder that is there, of one segment's provers on this host.

    Raises:
        ConfigurationError: It cannot be read or made; others may read it; it holds
            something else.
    """
    if not path.exists():
        _make(path)
    logger.warning(
        "order secret %s: not sealed; whoever is root on this host can read what is "
        "proven. A set-up of `bentoml-secure seal-proofs` has none",
        path,
    )
    data = read_secret(path, what="order secret", max_bytes=4 * KEY_BYTES)
    text = data.decode("ascii", "replace").strip()
    try:
        return parse_hex(text, what="order secret", length=KEY_BYTES)
    except MalformedInputError:
        # Its own error repeats what was got.
        raise ConfigurationError(
            f"order secret {path}: want {2 * KEY_BYTES} lower-case hex digits.",
            remedy="Remove it; orders that wait for it are then lost.",
        ) from None


def _make(path: Path) -> None:
    # Written elsewhere, then named: nobody ever reads half of it, and of several
    # processes that start at once all use the one that was named first.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(_NAME_BYTES)}")
    with new_secret(draft, what="order secret") as pieces:
        pieces.append(secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    except OSError as error:
        raise ConfigurationError(
            f"order secret {path}: cannot be made: {error.strerror}."
        ) from error
    finally:
        draft.unlink()
