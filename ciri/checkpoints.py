"""Weight files: which formats are read, what is verified, which model a file holds, where it came from.

A weight file is somebody else's data. Nothing in it is ever run: ``.safetensors`` cannot hold code, and ``.pth`` and
``.pt`` go through PyTorch's restricted unpickler only. Sizes are checked against the file before memory is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ciri.errors import CheckpointError
from ciri.replacing import replacing
from ciri.signatures import TensorInfo, identify, signature_of

#: File name endings that are read. Anything else is refused by name.
SUFFIXES = (".safetensors", ".pth", ".pt")

#: Entries under which published training loops store the network, tried in this order.
WRAPPERS = ("netG", "state_dict", "model_state_dict", "model", "network", "netD")

#: Prefixes that wrappers put in front of every key.
PREFIXES = ("module.", "_orig_mod.")

#: The safetensors format's own limit on its header; also the limit here on the pickle inside a PyTorch file.
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Summary:
    """What a weight file is, found without loading its tensors where the format allows that."""

    path: Path
    model: str | None
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    metadata: Mapping[str, str]
    bytes: int

    @property
    def parameters(self) -> int:
        """How many numbers the file holds."""
        return sum(math.prod(info.shape) for info in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors there are of each dtype."""
        names = [info.dtype for info in self.tensors.values()]
        return {name: names.count(name) for name in dict.fromkeys(names)}


def read_state_dict(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a weight file into (state dict, metadata), unwrapped, on the CPU; nothing in it is run.

    Raises:
        CheckpointError: the file is missing, empty, a folder, truncated, of another format than its name says, or
            holds anything else than named tensors.
    """
    path = Path(path)
    if check_format(path) == "safetensors":
        metadata = read_header(path)[1]
        try:
            return load_file(path), metadata
        except (SafetensorError, OSError, ValueError) as error:
            raise broken(path, error) from error
    return unwrap(load_pickled(path), path), {}


def summarise(path: str | os.PathLike[str]) -> Summary:
    """Say what a weight file is. Only the header of a ``.safetensors`` file is read.

    Raises:
        CheckpointError: as :func:`read_state_dict`.
    """
    path = Path(path)
    if check_format(path) == "safetensors":
        tensors, metadata = read_header(path)
    else:
        tensors = {
            key: TensorInfo(tuple(value.shape), dtype_name(value.dtype))
            for key, value in unwrap(load_pickled(path), path).items()
        }
        metadata = {}
    return Summary(path, identify(tensors, metadata), tensors, metadata, path.stat().st_size)


def list_files(folders: Iterable[str | os.PathLike[str]], model: str) -> list[Path]:
    """Weight files of one model in some folders and below, in name order; files that cannot be read are left out."""
    return sorted(summary.path for summary in summaries(folders) if summary.model == model)


def summaries(folders: Iterable[str | os.PathLike[str]]) -> Iterator[Summary]:
    """Summaries of all readable weight files in some folders and below."""
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                try:
                    yield summarise(path)
                except CheckpointError:
                    continue


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, model: str, path: str | os.PathLike[str], drop: str | tuple = ()
) -> None:
    """Copy a state dict into a module: every key is used, none is missing, all shapes agree, all values are numbers.

    Args:
        module: what receives the weights; it keeps its own dtype and device.
        state: as :func:`read_state_dict` returns it.
        model: name of the expected model, for the message.
        path: where the weights came from, for the message.
        drop: prefix or prefixes of keys that published files hold and this module does not need.

    Raises:
        CheckpointError: names the expected model, the first keys that do not fit, and what the file looks like.
    """
    state = {key: value for key, value in state.items() if not (drop and key.startswith(drop))}
    expected = module.state_dict()
    complaints = [
        # batch norm's step counters matter to training only, and older files lack them
        *some("missing", [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]),
        *some("unknown", [key for key in state if key not in expected]),
        *some(
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
                for key, value in expected.items()
                if key in state and state[key].shape != value.shape
            ],
        ),
        *some(
            "of another kind",
            [
                f"{key} {state[key].dtype} instead of {value.dtype}"
                for key, value in expected.items()
                if key in state and state[key].is_floating_point() != value.is_floating_point()
            ],
        ),
    ]
    if complaints:
        found = signature_of(identify(state))
        looks = f" It looks like {found.title}." if found and found.model != model else ""
        wanted = signature_of(model)
        title = wanted.title if wanted else model
        raise CheckpointError(f"{path} does not hold the weights of {title}: {'; '.join(complaints)}.{looks}")
    broken_keys = [key for key, value in state.items() if not _all_numbers(value, key, path)]
    if broken_keys:
        raise CheckpointError(
            f"{path} holds values that are not numbers: {'; '.join(some('in', broken_keys))}. "
            "The file is damaged; fetch it again."
        )
    module.load_state_dict({**expected, **state}, strict=True)


def _all_numbers(value: Tensor, key: str, path: str | os.PathLike[str]) -> bool:
    """Whether no value is NaN or infinite. Raises CheckpointError: numbers that PyTorch stores but cannot convert."""
    if not value.is_floating_point():
        return True
    try:
        # most kinds of one byte have no test of their own, and all of them fit into float32
        return bool((value.float() if value.dtype.itemsize == 1 else value).isfinite().all())
    except NotImplementedError as error:
        raise CheckpointError(
            f"{path} holds {value.dtype} under {key!r}, which cannot be converted here; expected float32, float16 or "
            "bfloat16. Use the file that the model's authors published."
        ) from error


def write_safetensors(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict so that ``path`` holds either the whole new file or what it held before.

    Raises:
        CheckpointError: the name does not end in ``.safetensors``, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors.")
    # tensors that share memory (tied weights) are written twice: the format has no aliases
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    try:
        with replacing(path) as part:
            save_file(tensors, part, metadata={"format": "pt", **(metadata or {})})
    except (OSError, SafetensorError) as error:
        # an OSError's text names the hidden file
        raise CheckpointError(f"{path} could not be written: {getattr(error, 'strerror', None) or error}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file, for provenance."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_format(path: Path) -> str:
    """Return "safetensors", "zip" or "legacy" (PyTorch before 1.6) from name and content, which must agree."""
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path} is not a weight file that is read here; expected one of {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a weight file.")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty. The download probably failed; fetch it again.")
    found = "safetensors" if head[8:9] == b"{" else "zip" if head[:4] == b"PK\x03\x04" else "legacy"
    if path.suffix.lower() == ".safetensors" and found != "safetensors":
        raise CheckpointError(
            f"{path} is not a safetensors file"
            + (
                ", it is a PyTorch file: rename it to .pth."
                if found == "zip"
                else ": it is damaged or of another kind."
            )
        )
    if path.suffix.lower() != ".safetensors" and found == "safetensors":
        raise CheckpointError(f"{path} is a safetensors file under another name: rename it to .safetensors.")
    return found


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read names, shapes and metadata of a ``.safetensors`` file, and nothing else of it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, LARGEST_HEADER):
            raise broken(path, f"its header claims {length} bytes and the whole file has {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
        stated = header.pop("__metadata__", None)
        metadata = {} if stated is None else {str(key): str(value) for key, value in stated.items()}
        tensors = {key: TensorInfo(tuple(map(int, e["shape"])), str(e["dtype"])) for key, e in header.items()}
        spans = {key: tuple(map(int, entry["data_offsets"][:2])) for key, entry in header.items()}
        end = max((last for _, last in spans.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise broken(path, "its header cannot be understood") from error
    if end != size - 8 - length:
        raise broken(path, f"it holds {size - 8 - length} bytes of weights and its header announces {end}")
    for key, (first, last) in spans.items():
        shape = tensors[key].shape
        # the smallest numbers that there are take half a byte
        if any(side < 0 for side in shape) or math.prod(shape) > 2 * (last - first):
            raise broken(path, f"its header claims a tensor {shape} under {key!r} that it does not hold")
    return tensors, metadata


def load_pickled(path: Path) -> object:
    """Read a ``.pth`` or ``.pt`` file with the restricted unpickler, which knows tensors and plain containers only."""
    zipped = check_format(path) == "zip"
    if zipped:
        check_zip(path)
    try:
        # mapped into memory: a listing that looks at shapes does not read the weights
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever the unpickler stumbles over, this is no weight file
        # bytes that are no pickle end in a number that was looked up, or in PyTorch's advice to read them unsafely
        means_nothing = isinstance(error, LookupError) or "weights_only" in str(error)
        if not isinstance(error, pickle.UnpicklingError) and not means_nothing:
            raise broken(path, str(error).partition("\n")[0].rstrip(".")) from error
        if re.search(r"Unsupported (global|class)|Trying to", str(error)):
            raise CheckpointError(
                f"{path} holds more than weights (it asks to run code when it is read), so it was not read. "
                "Use a file from the model's authors, or a .safetensors file."
            ) from error
        raise broken(path, "it is not a PyTorch weight file") from error


def check_zip(path: Path) -> None:
    """Refuse archives that unpack to more than they are: PyTorch stores its entries uncompressed, once each."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise broken(path, error) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} is a compressed archive, which PyTorch never writes; it was not unpacked.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} claims to hold more bytes than it has; it was not read.")
    if any(entry.filename.endswith(".pkl") and entry.file_size > LARGEST_HEADER for entry in entries):
        raise CheckpointError(f"{path} has an index of more than {LARGEST_HEADER} bytes; it was not read.")


def unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Return the named tensors inside what a training loop saved, without wrapper entries and key prefixes."""
    for _ in range(3):
        inner = next((content[name] for name in WRAPPERS if isinstance(content, dict) and is_dict(content, name)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no named weights (it holds a {type(content).__name__}).")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not is_plain(value):
            raise CheckpointError(f"{path} holds something else than weights under {key!r} ({type(value).__name__}).")
        if value.is_meta:
            raise CheckpointError(
                f"{path} holds the shape of {key!r} but not its numbers: it was saved before they were loaded. "
                "Use a file that was saved from the loaded model."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path} claims a tensor {tuple(value.shape)} under {key!r} that it does not hold.")
    state: dict[str, Tensor] = dict(content)
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def is_dict(content: dict, name: str) -> bool:
    """Whether an entry is itself a dictionary."""
    return isinstance(content.get(name), dict)


def is_plain(value: Tensor) -> bool:
    """Whether a tensor is an array of numbers: not sparse, nested or quantised, which no network here is made of."""
    return value.layout == torch.strided and not value.is_nested and not value.is_quantized


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a dtype."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    return names.get(dtype, str(dtype).removeprefix("torch.").replace("uint", "U").replace("int", "I"))


def some(what: str, items: list[str], show: int = 3) -> list[str]:
    """One clause that counts the items and shows the first few, or none."""
    if not items:
        return []
    return [f"{len(items)} {what} ({', '.join(items[:show])}{', ...' if len(items) > show else ''})"]


def broken(path: Path, reason: object) -> CheckpointError:
    """The error for a file that is damaged."""
    return CheckpointError(
        f"{path} cannot be read as a weight file: {reason}. It may be damaged or incomplete; fetch it again."
    )
