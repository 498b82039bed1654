"""When are two answers alike? The table of rules.

A rule gives the distance of two answers, and None where they cannot be compared; the
quorum decides what distance still agrees. A new rule is one file here and one line in
the table; third parties register under the entry-point group
``bentoml_secure.consensus_rules``. What several share is in ``pairing`` and
``ranking``; ``toploc`` is the format of fingerprints. docs/consensus-rules.md compares
them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bentoml_secure import registry
from bentoml_secure.tensors import Array

_HERE = "bentoml_secure.consensus.rules"
RULES = {
    "exact": f"{_HERE}.exact:Exact",
    "fingerprint": f"{_HERE}.fingerprint:LargestActivations",
    "jensen_shannon_of_logits": f"{_HERE}.distribution:JensenShannonOfLogits",
    "jensen_shannon_of_probabilities": (
        f"{_HERE}.distribution:JensenShannonOfProbabilities"
    ),
    "token_agreement": f"{_HERE}.token_agreement:TokenAgreement",
    "top_5": f"{_HERE}.top_k:TopFive",
    "total_variation_of_logits": f"{_HERE}.distribution:TotalVariationOfLogits",
    "total_variation_of_probabilities": (
        f"{_HERE}.distribution:TotalVariationOfProbabilities"
    ),
    "within_tolerance": f"{_HERE}.within_tolerance:WithinTolerance",
}
GROUP = "bentoml_secure.consensus_rules"


class Rule(Protocol):
    """What a rule has to offer; made without arguments, shared between threads."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return how far two answers lie apart: finite, from 0, symmetric.

        Args:
            a: Output tensors of one replica by name.
            b: Those of another.

        Returns:
            None where they are not comparable, and so never agree.
        """


def load_rule(kind: str) -> Rule:
    """Return the rule of that kind.

    Raises:
        UnknownKindError: Nobody registered the kind.
        ConfigurationError: A plugin claims the name of a built-in kind.
    """
    rule: Rule = registry.load(kind, RULES, GROUP)()
    return rule
