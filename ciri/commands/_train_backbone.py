"""``python -m ciri train backbone``: the lite backbone, or a published one fine-tuned with curricular inactivation.

Several processes: ``torchrun --nproc_per_node N -m ciri train backbone ...``; ``--batch`` is that of each of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ciri.commands import _arguments as shared
from ciri.commands._train_shared import STEPS, add_run, parse_size, plan_of
from ciri.console import remark

#: What an option is where it is not given: for the lite backbone, and for the published ones.
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "batch": (6, 8),
    "length": (12, 24),
    "rate": (1e-3, 2e-5),
    "held_back": (24, 8),
}
#: Options of the lite backbone alone, and what they are where they are not given.
LITE: dict[str, Any] = {
    "variant": "ciri",
    "window": 3,
    "crop": "192x128",
    "pool": 500,
    "keep": None,
    "reuse": 0,
    "channels": "32,64,96,128",
    "deep": 4,
    "pretraining": 0.35,
    "perceptual": 0.1,
    "adversarial_from": 1.0,
}
#: The same of the published ones.
PUBLISHED: dict[str, Any] = {
    "epochs": 30.0,
    "local": 5,
    "references": 3,
    "gate_points": "out",
    "adversarial": 0.01,
    "flow": 1.0,
}


def add_parser(networks: Any) -> None:
    parser = networks.add_parser("backbone", help="the backbone lite, or a published one with --model")
    add_run(parser, f"{STEPS}; published: all epochs")
    parser.add_argument("--model", default="lite", help="lite, e2fgvi, e2fgvi_hq, fuseformer, dstt or sttn")
    parser.add_argument("--init", type=Path, help="weights to begin with; the published checkpoint with --model")
    parser.add_argument("--batch", type=int, help="clips per step and process (default 6; published 8)")
    parser.add_argument("--length", type=int, help="frames of the clips that are made (default 12; published 24)")
    parser.add_argument("--size", metavar="WxH", default="432x240", help="size of the clips (default 432x240)")
    parser.add_argument("--rate", type=float, help="learning rate (default 1e-3; published 2e-5)")
    parser.add_argument(
        "--predictions", default="", metavar="PROPAGATOR", help="take half of the wrong masks from it, such as flow"
    )
    parser.add_argument("--look-every", type=int, default=500, help="steps between validations (default 500)")
    parser.add_argument("--held-back", type=int, help="clips that are validated on (default 24; published 8)")
    shared.add_device(parser)
    _add_lite(parser.add_argument_group("the lite backbone"))
    _add_published(parser.add_argument_group("published backbones"))
    parser.set_defaults(run=_train)


def _add_lite(group: Any) -> None:
    # without defaults: what is given shows by not being None
    group.add_argument("--variant", help="ciri, no-curriculum or hard-mask (default ciri)")
    group.add_argument("--window", type=int, help="frames of a clip and step (default 3)")
    group.add_argument("--crop", metavar="WxH", help="size of what is trained on (default 192x128)")
    group.add_argument("--pool", type=int, help="clips held, or kept, for reuse (default 500)")
    group.add_argument("--keep", type=Path, metavar="DIR", help="make them first, keep them for other runs")
    group.add_argument("--reuse", type=int, help="draw each clip so often before it is replaced (default 0)")
    group.add_argument("--channels", help="at 1/2, 1/4, 1/8 and 1/16 (default 32,64,96,128)")
    group.add_argument("--deep", type=int, help="residual blocks at 1/16 (default 4)")
    group.add_argument("--pretraining", type=float, help="share of the plan before the curriculum (default 0.35)")
    group.add_argument("--perceptual", type=float, help="weight of the perceptual loss (default 0.1)")
    group.add_argument("--adversarial-from", type=float, help="progress at which it starts (default 1: never)")


def _add_published(group: Any) -> None:
    group.add_argument("--epochs", type=float, help="an epoch is a window per clip (default 30)")
    group.add_argument("--local", type=int, help="consecutive frames of a window (default 5)")
    group.add_argument("--references", type=int, help="other frames of a window (default 3)")
    group.add_argument("--gate-points", help="where Eq. 1 acts: out, x0, half (default out)")
    group.add_argument("--adversarial", type=float, help="weight of the discriminator (default 0.01)")
    group.add_argument("--flow", type=float, help="weight of E2FGVI's flow loss (default 1)")


def _train(args: argparse.Namespace) -> None:
    from ciri.training.distributed import join

    lite = args.model == "lite"
    _refuse_the_others(args, lite)
    usual = {name: values[0] if lite else values[1] for name, values in DEFAULTS.items()}
    for name, value in {**usual, **(LITE if lite else PUBLISHED)}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.width, args.height = parse_size(args.size, "432x240")
    with join(str(shared.choose_device(args.device))) as team:
        args.device = team.device
        train = _lite_training(args) if lite else _published_training(args)
        if not team.main:
            train(team=team)
            return
        with shared.progress("training") as bar:
            weights = train(team=team, say=remark, on_step=bar)
    tool = "copy it to weights/ once benchmarks/learned_inpainting.py says that it is better"
    remark(f"{weights}: {tool if lite else 'load it like the published file; it gates instead of masking'}")


def _refuse_the_others(args: argparse.Namespace, lite: bool) -> None:
    """Refuse options that this kind of backbone does not have: a run that ignored them would not be what was asked for.

    Raises:
        TrainingError: such options were given.
    """
    from ciri.errors import TrainingError

    # a published one's schedule goes by epochs, whatever the clock says
    others = PUBLISHED if lite else {**LITE, "plan_minutes": None}
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name) is not None]
    if given:
        plan = " How long it trains is said by --epochs or --steps." if "--plan-minutes" in given else ""
        raise TrainingError(
            f"{', '.join(given)} with --model {args.model}: {'published backbones have' if lite else 'lite has'} that "
            f"and {args.model} has not; leave it out.{plan}"
        )


def _lite_training(args: argparse.Namespace) -> Callable[..., Path]:
    from functools import partial

    from ciri.errors import TrainingError
    from ciri.inpainting.lite_network import LiteConfig
    from ciri.training.backbone import Settings, train_backbone

    try:
        half, quarter, eighth, sixteenth = (int(count) for count in args.channels.split(","))
    except ValueError:
        raise TrainingError(f"--channels {args.channels!r}: expected four numbers, such as 32,64,128,192.") from None
    args.crop = parse_size(args.crop, "192x128", "--crop")[::-1]
    vars(args).update(plan_of(args, STEPS))
    config = LiteConfig(half=half, quarter=quarter, eighth=eighth, sixteenth=sixteenth, deep=args.deep)
    return partial(train_backbone, Settings(config=config, **_common(args, Settings)))


def _published_training(args: argparse.Namespace) -> Callable[..., Path]:
    from functools import partial

    from ciri.errors import TrainingError
    from ciri.training.published import Settings, train_published

    if args.init is None:
        raise TrainingError(f"--model {args.model} needs --init, the checkpoint that its authors published.")
    args.gate_points = tuple(point.strip() for point in args.gate_points.split(","))
    return partial(train_published, Settings(**_common(args, Settings)))


def _common(args: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """The arguments that the settings have under the same name."""
    return {name: value for name, value in vars(args).items() if name in settings.__dataclass_fields__}
