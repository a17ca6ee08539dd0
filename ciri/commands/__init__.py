"""The commands of ``python -m ciri``: one module each.

To add a command, add a module with ``add_parser(subparsers)``. It makes its parser and names the
function that runs it::

    def add_parser(subparsers):
        parser = subparsers.add_parser("inspect", help="show what a checkpoint holds")
        parser.add_argument("file")
        parser.set_defaults(run=run)

    def run(args: argparse.Namespace) -> None:
        from ciri.checkpoints import load       # heavy imports here: other commands do not wait for them
        ...

``run`` reports bad input by raising a :class:`ciri.errors.CiriError`; the command line turns it into one line and
exit code 2. It may return another exit code. Modules that start with an underscore are no commands.
"""
