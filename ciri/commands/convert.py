"""``python -m ciri convert``: turn a published weight file into .safetensors that says what it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert", help="read a published weight file without running anything in it, and write it as .safetensors"
    )
    parser.add_argument("file", type=Path, help="a .pth, .pt or .safetensors file")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert and say what was written.

    Raises:
        CheckpointError: the input cannot be read or is of no known model, or the output cannot be written.
    """
    from ciri.checkpoints import read_state_dict, write_safetensors
    from ciri.console import remark
    from ciri.errors import CheckpointError
    from ciri.signatures import identify, signature_of

    if args.output.exists() and not args.force:
        raise CheckpointError(f"{args.output} is there already; give another name, or --force to replace it.")
    state, stated = read_state_dict(args.file)
    model = identify(state, stated)
    signature = signature_of(model)
    if signature is None:
        raise CheckpointError(
            f"{args.file} holds weights of {model or 'no model that is known here'} (first key: {next(iter(state))}); "
            "only published models are converted."
        )
    write_safetensors(args.output, state, {**provenance(args.file, signature), **stated})
    licence = signature.licence or "not stated; ask the authors"
    remark(f"{args.output}: {signature.title}, {len(state)} tensors. Licence of the weights: {licence}.")


def provenance(source: Path, signature: Any) -> dict[str, str]:
    """Metadata: what the weights are, where they came from, and under which terms."""
    from ciri import __version__
    from ciri.checkpoints import sha256

    return {
        "architecture": signature.model,
        "title": signature.title,
        "licence": signature.licence or "not stated",
        "trained_for": signature.trained_for,
        "source": source.name,
        "source_sha256": sha256(source),
        "converted_by": f"ciri {__version__}",
    }
