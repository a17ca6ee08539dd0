"""A network for the window driver with a few numbers only: trainings of it are quick to run and to save."""

import torch

from ciri.checkpoints import write_safetensors
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.network import WindowNetwork


class Tiny(WindowNetwork):
    name = "tiny"
    facts = BackboneFacts(trained_for="hard mask")

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.ConvTranspose2d(8, 3, 4, 4)

    def stages(self):
        return {"out": self.encoder}

    def decode_window(self, features, local, flows=None):
        mixed = features + features.mean(1, keepdim=True)
        return self.decoder(mixed[:, :local].flatten(0, 1)).tanh().unflatten(0, (len(features), local))


def write_tiny(file):
    """Write seeded weights of it; they are recognised by what the file says of itself."""
    torch.manual_seed(0)
    write_safetensors(file, Tiny().state_dict(), {"architecture": "tiny"})
    return file
