"""``prove setup``: choose circuits for a plan, make their keys, sign what they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import own_files, plain
from bentoml_secure.cli.parameters import FILE, read_private_key
from bentoml_secure.cli.splitting import progress

if TYPE_CHECKING:
    from bentoml_secure.proofs.accuracy import Measured
    from bentoml_secure.proofs.setup import SetUp

DEFAULT_ACCURACY = 0.01
_GIB = 1 << 30


@click.command()
@click.argument("plan_dir", type=FILE, metavar="PLAN_DIR")
@click.option(
    "--out", type=FILE, required=True, metavar="DIR", help="New folder of the set-up."
)
@click.option(
    "--samples",
    type=FILE,
    required=True,
    metavar="FILE.npz",
    help="Real inputs by name, rows along the batch or a first axis.",
)
@click.option(
    "--tests",
    type=FILE,
    metavar="FILE.npz",
    help="Others, that nothing is chosen on: answers must be as accurate on them.",
)
@click.option(
    "--key",
    type=FILE,
    required=True,
    metavar="PEM",
    help="The owner's Ed25519 private key, without a passphrase: signs the manifest.",
)
@click.option(
    "--srs",
    type=FILE,
    required=True,
    metavar="DIR",
    help="Folder of structured reference strings, of `prove srs import`.",
)
@click.option(
    "--accuracy",
    type=click.FloatRange(min=0.0, min_open=True),
    default=DEFAULT_ACCURACY,
    show_default=True,
    help="Largest absolute difference of an output's element from the model's.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=N,...",
    help="Shape of an input in one request; repeatable.  [default: one row]",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="GIB",
    help="What a prover has.  [default: what this machine has free]",
)
@click.option(
    "--unsafe-srs",
    is_flag=True,
    # Not from the environment: it gives soundness up.
    allow_from_autoenv=False,
    help="Make missing strings here: whoever saw their secret can forge proofs.",
)
@click.option(
    "--links",
    type=click.Choice(["hashed", "polycommit"]),
    default="hashed",
    show_default=True,
    # Not from the environment: it gives privacy up.
    allow_from_autoenv=False,
    help="How proofs state what goes between segments. polycommit is cheaper, and"
    " tells of it to whoever reads a receipt; callers have to accept that.",
)
def setup(
    plan_dir: Path,
    out: Path,
    samples: Path,
    tests: Path | None,
    key: Path,
    srs: Path,
    accuracy: float,
    shapes: tuple[str, ...],
    memory: float | None,
    unsafe_srs: bool,
    links: str,
) -> None:
    """Set proofs of every segment of the plan in PLAN_DIR up.

    Chooses the cheapest circuits whose answers on all samples stay within --accuracy of
    the model's, makes their keys and signs the manifest. DIR holds the model's weights.
    """
    from bentoml_secure.proofs.links import Link
    from bentoml_secure.proofs.setup import Demands, set_up
    from bentoml_secure.split import read_samples

    demands = Demands(
        accuracy=accuracy,
        shapes=dict(map(_shape, shapes)),
        memory_bytes=None if memory is None else int(memory * _GIB),
        unsafe_srs=unsafe_srs,
        link=Link(links),
    )
    owner = read_private_key(key)
    for file in (samples, tests):
        if file is not None:
            with own_files(str(file)):
                read_samples(file)
    with progress() as tell:
        made = set_up(
            plan_dir,
            out,
            samples,
            owner,
            srs,
            tests=tests,
            demands=demands,
            progress=tell or _silent,
        )
    _print(made, out)


def _silent(_: str) -> None:
    """Take no notice."""


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not equals or not name or not shape or min(shape) < 1:
        raise click.BadParameter(
            f"--shape: got {text!r:.60}, want such as features=1,30"
        )
    return name, shape


def _print(made: SetUp, out: Path) -> None:
    from bentoml_secure.proofs.admission import estimate

    manifest = made.manifest
    click.echo(f"{len(manifest.segments)} segments at scale {manifest.scale} in {out}")
    for index, segment in enumerate(manifest.segments):
        chosen = segment.parameters
        click.echo(
            f"  {index}  2^{chosen.logrows} rows, decomposition "
            f"{chosen.decomposition_base}^{chosen.decomposition_legs}, look-ups to "
            f"{chosen.lookup_bound}; proving key {segment.proving_key_bytes:,} bytes: "
            f"{estimate(segment.proving_key_bytes)}"
        )
    _print_measured("samples", made.measured)
    if made.tested is not None:
        _print_measured("test set", made.tested)
    if manifest.srs.unsafe:
        click.echo(
            "warning: the structured reference string is unsafe: for trials only",
            err=True,
        )
    if manifest.link == "polycommit":
        click.echo(
            "warning: polycommit links: proofs tell of the activations between "
            "segments",
            err=True,
        )
    click.echo(f"signer {manifest.signer_id}")
    click.echo(f"manifest {manifest.digest}")


def _print_measured(of: str, measured: Measured) -> None:
    for name, largest in measured.largest.items():
        label = measured.same_label.get(name)
        same = "" if label is None else f", same label {100 * label:.4g} %"
        click.echo(
            plain(
                f"  {name}, {of}: largest difference {largest:.3g}, mean "
                f"{measured.mean[name]:.3g}, {measured.requests} requests{same}"
            )
        )
