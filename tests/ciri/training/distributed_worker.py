"""One of the processes that test_distributed.py starts; the test itself trains with :func:`train` too."""

import faulthandler
import json
import pathlib
import sys

import torch

from ciri.errors import TrainingError
from ciri.inpainting.lite_network import LiteConfig
from ciri.inpainting.load import NETWORKS
from ciri.training import published
from ciri.training.backbone import BackboneTrainer, Settings
from ciri.training.distributed import average_gradients, join, mean_values
from ciri.training.run import fit, open_run
from ciri.training.sample_sources import SampleStream
from ciri.training.samples import Batch
from tests.ciri.training.tiny_network import Tiny


def train(data, numbers, steps):
    """Train a tiny network on samples 4 n + number of the stream in step n; return the losses and the trainer."""
    small = LiteConfig(half=8, quarter=8, eighth=16, sixteenth=16, deep=1)
    trainer = BackboneTrainer(Settings(data=data, out=data, config=small, adversarial_from=0.0, rate=1e-3))
    stream = SampleStream(data, (32, 48), 3, seed=5)
    maker, logged = stream.maker(), []
    for step in range(steps):
        batch = Batch.of([stream.sample(maker, 4 * step + number) for number in numbers])
        values = trainer.step(batch, 0.8, 300 + step)
        logged.append(mean_values({name: float(value) for name, value in values.items()}, "cpu"))
    return logged, trainer


def fine_tune(data, init, out, batch, team=None):
    """Fine-tune the tiny network for three steps of the whole recipe."""
    NETWORKS["tiny"] = Tiny
    try:
        small = dict(local=2, references=1, length=6, height=48, width=72, held_back=1, log_every=1, look_every=9)
        settings = published.Settings(
            model="tiny", init=init, data=data, out=out, batch=batch, steps=3, rate=1e-3, **small
        )
        return published.train_published(settings, team=team)
    finally:
        del NETWORKS["tiny"]


def main(data, out, steps):
    with join("cpu") as team:
        fine_tune(data, out / "tiny.safetensors", out / "published", 1, team)
        logged, trainer = train(data, (2 * team.rank, 2 * team.rank + 1), steps)
        weights, critic = trainer.network.state_dict(), trainer.critic.state_dict()
        torch.save({"logged": logged, "weights": weights, "critic": critic}, out / f"rank{team.rank}.pt")
        # a parameter that has a gradient in one process only, and one that has none anywhere
        one, none = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
        if team.rank:
            one.grad = torch.tensor([2.0, 4.0])
        average_gradients([one, none])

        def step(number, progress):
            return {"loss": float("nan") if number == 4 and team.rank else number + team.rank}

        run, said = open_run(out / "run", {"what": "a loss that is no number in one process"}, team), ""
        try:
            fit(run, {}, step, steps=9, log_every=1, save_minutes=0)
        except TrainingError as error:
            said = str(error)
        facts = {"one": one.grad.tolist(), "none": none.grad, "said": said}
        (out / f"rank{team.rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    faulthandler.enable()  # an abort says where
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]))
