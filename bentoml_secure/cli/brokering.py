"""``broker``: the file of keys that a key broker releases from, and its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import Outcome, State, own_files, settle
from bentoml_secure.cli.owned import OUT, Owned, deployment_options, write_out
from bentoml_secure.cli.parameters import FILE
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.keys.audit_log import AuditEntry
    from bentoml_secure.keys.broker_store import BrokerStore

MAX_REASON_CHARACTERS = 500
_KINDS = ("segment", "plan", "platform", "key-document", "key")

_STORE = click.argument("store", type=FILE, metavar="STORE")
_WRAPPING = click.option(
    "--wrapping-key",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Under which STORE keeps its keys; keep it apart from STORE.",
)


@click.group()
def broker() -> None:
    """Keep the keys of sealed models, and the log of who got them."""


@broker.command()
@_STORE
@_WRAPPING
def init(store: Path, wrapping_key: Path) -> None:
    """Make STORE and the wrapping key's file; both must be new."""
    from bentoml_secure.keys.broker_store import BrokerStore
    from bentoml_secure.keys.wrapping_key import create_wrapping_key
    from bentoml_secure.statements import utc_now

    if store.exists():
        raise ConfigurationError(f"{store}: exists; nothing is overwritten.")
    wrapping = create_wrapping_key(wrapping_key)
    with closing(BrokerStore.create(store, wrapping, now=utc_now())):
        click.echo(f"broker store {store}, wrapping key {wrapping_key}")


@broker.command("add-keys")
@_STORE
@click.argument("keys_file", type=FILE, metavar="KEYS")
@_WRAPPING
def add_keys(store: Path, keys_file: Path, wrapping_key: Path) -> None:
    """Take in the keys that `seal-model` or `seal-proofs` wrote to KEYS.

    Those of `seal-proofs` go to provers only. Remove KEYS afterwards.
    """
    from bentoml_secure.keys.key_file import read_keys
    from bentoml_secure.keys.wrapping_key import read_wrapping_key
    from bentoml_secure.statements import utc_now

    with own_files(str(keys_file)):
        keys = read_keys(keys_file)
    wrapping = read_wrapping_key(wrapping_key)
    with _opened(store) as opened:
        opened.add_keys(keys, wrapping, now=utc_now())
    whose = f", for a {keys.role} only" if keys.role else ""
    click.echo(f"{len(keys.keys)} keys of plan {keys.plan}{whose}")


@broker.command()
@deployment_options
@OUT
def policy(out: Path | None, **named: Any) -> None:
    """Write the policy by which a broker releases the keys of one deployment.

    They go to runners and provers of the plan in PLAN_DIR, sealed, under these
    scenarios and this appraisal policy, of this release of the package: nobody else.
    """
    from bentoml_secure.attestation.key_document import package_digest
    from bentoml_secure.keys.broker_policy import ROLES, VERSION, parse_broker_policy
    from bentoml_secure.receipts.toml import write_toml

    owned = Owned.read(**named, sealed=True)
    model = {
        "plan": owned.plan.digest,
        "roles": [role.value for role in ROLES],
        "config_digests": [owned.configuration.digest],
        "package_digests": [package_digest()],
    }
    document = {"version": VERSION, "models": [model]}
    text = write_toml({**document, "appraisal": owned.policy.to_json()})
    parse_broker_policy(text.encode())
    write_out(out, text)


@broker.command()
@_STORE
@click.argument("kind", type=click.Choice(_KINDS))
@click.argument("value", metavar="VALUE")
@click.option("--reason", required=True, help="For the log.")
def revoke(store: Path, kind: str, value: str, reason: str) -> None:
    """Release no key of, or to, VALUE any more. It cannot be undone.

    VALUE is the identity of a segment, the digest of a plan or key document, a
    platform's id, or the id of a key, as `broker audit` shows them. Keys already
    released stay with who has them.
    """
    from bentoml_secure.attestation.key_document import MAX_SERVICE_CHARACTERS
    from bentoml_secure.digest import JSON, parse_digest
    from bentoml_secure.keys.broker_store import Revoked
    from bentoml_secure.keys.segment_key import parse_key_id
    from bentoml_secure.statements import utc_now

    if not 0 < len(reason) <= MAX_REASON_CHARACTERS or not reason.isprintable():
        raise click.UsageError(
            f"--reason: want 1 to {MAX_REASON_CHARACTERS} printable characters"
        )
    if kind == Revoked.PLATFORM:
        if not 0 < len(value) <= 2 * MAX_SERVICE_CHARACTERS or not value.isprintable():
            raise click.UsageError("VALUE: want a platform's id")
    elif kind == Revoked.KEY:
        with own_files("VALUE"):
            parse_key_id(value, what="VALUE")
    else:
        with own_files("VALUE"):
            parse_digest(value, what="VALUE", algorithm=JSON)
    with _opened(store) as opened:
        opened.revoke(Revoked(kind), value, reason=reason, now=utc_now())
    click.echo(f"{kind} {value} revoked")


@broker.command()
@_STORE
@click.option(
    "--head",
    metavar="DIGEST",
    help="Of an entry that the log must hold: noted earlier, or received with a key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(store: Path, head: str | None, as_json: bool) -> None:
    """Show the log of STORE and verify that it is one unbroken chain.

    Only --head shows that its end was not cut off: note the last digest elsewhere.
    """
    from bentoml_secure.digest import JSON, Digest, parse_digest

    noted: Digest | None = None
    if head is not None:
        with own_files("--head"):
            noted = parse_digest(head, what="--head", algorithm=JSON)

    def judge() -> Outcome:
        """Return the verdict on the log."""
        with _opened(store) as opened:
            entries = opened.audit(head=noted)
        claims = {
            "head": entries[-1].digest,
            "entries": [{**e.to_json(), "digest": e.digest} for e in entries],
        }
        return Outcome(
            state=State.ACCEPTED,
            kind="audit log",
            claims=claims,
            summary=[*map(_line, entries), f"head {entries[-1].digest}"],
        )

    settle("audit log", judge, as_json=as_json)


def _line(entry: AuditEntry) -> str:
    told = ", ".join(f"{name} {value}" for name, value in entry.details.items())
    return f"  {entry.sequence}  {entry.at}  {entry.event.value}  {told}"


@contextmanager
def _opened(path: Path) -> Iterator[BrokerStore]:
    from bentoml_secure.keys.broker_store import BrokerStore

    with closing(BrokerStore(path)) as store:
        yield store
