"""``python -m ciri COMMAND``: the commands are the modules of :mod:`ciri.commands`.

Exit codes: 0 done, 2 bad input (one line on standard error says what to do), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from ciri import __version__, commands
from ciri.errors import CiriError
from ciri.numbering import counted_from

#: What requirements.txt lists, by the names that Python imports.
_REQUIRED = ("torch", "numpy", "cv2", "einops", "safetensors")


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command in :mod:`ciri.commands`."""
    parser = argparse.ArgumentParser(
        prog="ciri", description="Remove an object from a whole video: paint it on one frame."
    )
    parser.add_argument("--version", action="version", version=f"ciri {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in pkgutil.iter_modules(commands.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{commands.__name__}.{module.name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        # within the try: loading PyTorch takes long enough to be interrupted
        args = make_parser().parse_args(arguments)
        # what is said about frames is said in INPUT's own numbers, as --mask-frame takes them
        with counted_from(getattr(args, "start", 0)):
            return args.run(args) or 0
    except CiriError as error:
        print(f"ciri: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # what lies in a folder that is not the user's, or has too long a name, cannot even be looked for
        if error.filename is None:
            raise
        print(f"ciri: {error.filename}: {error.strerror}; give a path that can be read or written.", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # anything else that is missing is a fault of this pack
        if error.name not in _REQUIRED:
            raise
        print(
            f"ciri: {sys.executable} has no {error.name}; run `pip install -r requirements.txt` with it, or use "
            ".venv/bin/python (./run.sh makes it) or ComfyUI's Python.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("ciri: interrupted", file=sys.stderr)
        return 130
