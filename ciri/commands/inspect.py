"""``python -m ciri inspect``: say what a weight file is, or what the weight files in a folder are."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ciri.checkpoints import Summary


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "inspect", help="say which model a weight file holds, its licence, size and keys; nothing in the file is run"
    )
    parser.add_argument("file", type=Path, help="a .safetensors, .pth or .pt file, or a folder of such files")
    parser.add_argument("--keys", action="store_true", help="list every key with its shape and type")
    parser.add_argument("--json", action="store_true", help="write JSON for programs instead of text for people")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the description to standard output.

    Raises:
        CheckpointError: the file cannot be read; in a folder such files are left out.
    """
    from ciri.checkpoints import summaries, summarise

    found = list(summaries([args.file])) if args.file.is_dir() else [summarise(args.file)]
    if args.json:
        described = [as_json(summary, args.keys) for summary in found]
        lines = [json.dumps(described if args.file.is_dir() else described[0], indent=2)]
    elif args.file.is_dir():
        lines = [one_line(summary) for summary in found] or [f"{args.file} holds no weight file that can be read."]
    else:
        lines = as_text(found[0], args.keys)
    sys.stdout.write("\n".join(lines) + "\n")


def title_of(summary: Summary) -> str:
    """The name that people know the model by."""
    from ciri.signatures import signature_of

    signature = signature_of(summary.model)
    return signature.title if signature else summary.model or "no model that is known here"


def facts_of(summary: Summary) -> dict[str, str]:
    """Licence and training: what the file says of itself, else what is known of the published weights."""
    from ciri.signatures import signature_of

    signature = signature_of(summary.model)
    known = {"licence": signature.licence, "trained_for": signature.trained_for} if signature else {}
    stated = {key: summary.metadata[key] for key in ("licence", "trained_for") if summary.metadata.get(key)}
    return {"licence": "", "trained_for": ""} | known | stated


def size_of(summary: Summary) -> str:
    """File size for people."""
    return f"{summary.bytes / 1e6:.1f} MB"


def one_line(summary: Summary) -> str:
    """The line of one file in the list of a folder."""
    return f"{title_of(summary):28s} {size_of(summary):>10s}  {summary.path}"


def as_text(summary: Summary, keys: bool) -> list[str]:
    """The description of one file."""
    facts = facts_of(summary)
    types = ", ".join(f"{count} {name}" for name, count in summary.dtypes.items())
    lines = [
        f"{'model':12s} {title_of(summary)}" + (f" ({summary.model})" if summary.model else ""),
        f"{'file':12s} {summary.path}, {size_of(summary)}",
        f"{'weights':12s} {summary.parameters:,} numbers in {len(summary.tensors)} tensors ({types})",
        f"{'licence':12s} {facts['licence'] or 'not stated'}",
    ]
    if facts["trained_for"]:
        lines.append(f"{'trained for':12s} {facts['trained_for']}")
    lines += [f"{'metadata':12s} {key}: {value}" for key, value in sorted(summary.metadata.items())]
    if keys:
        lines += [f"{info.dtype:5s} {list(info.shape)!s:24s} {key}" for key, info in summary.tensors.items()]
    return lines


def as_json(summary: Summary, keys: bool) -> dict[str, Any]:
    """The description of one file for programs."""
    described: dict[str, Any] = {
        "file": str(summary.path),
        "model": summary.model,
        "title": title_of(summary),
        "bytes": summary.bytes,
        "numbers": summary.parameters,
        "tensors": len(summary.tensors),
        "dtypes": summary.dtypes,
        "metadata": dict(summary.metadata),
        **facts_of(summary),
    }
    if keys:
        described["keys"] = {k: {"shape": list(i.shape), "dtype": i.dtype} for k, i in summary.tensors.items()}
    return described
