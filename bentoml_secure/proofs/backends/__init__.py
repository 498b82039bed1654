"""The proof systems: one file each, one line in this table.

Third parties register under the entry-point group ``bentoml_secure.proof_backends``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from bentoml_secure.proofs.proof import ProofBackend

GROUP = "bentoml_secure.proof_backends"
BACKENDS: Mapping[str, str] = {"ezkl": "bentoml_secure.proofs.backends.ezkl:Ezkl"}


def open_backend(name: str) -> ProofBackend:
    """Return the backend of a name.

    Raises:
        UnknownKindError: No such backend.
        MissingDependencyError: Its package is not installed.
    """
    # Children load this package before each proof, and open no backend.
    from bentoml_secure import registry

    return cast("ProofBackend", registry.load(name, BACKENDS, GROUP)())
