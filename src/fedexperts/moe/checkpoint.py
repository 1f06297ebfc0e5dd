"""Reading checkpoint folders of Hugging Face models expert by expert. Never from a pickle.

transformers 5 fuses the experts of a layer: parameters ``….mlp.experts.gate_up_proj`` [E, 2F, D] and
``….mlp.experts.down_proj`` [E, D, F] beside ``….mlp.gate.weight`` [E, D]. On disk they lie fused, or expert by expert
(Mixtral's ``block_sparse_moe.experts.{m}.w1|w2|w3.weight``, ``mlp.experts.{m}.gate_proj|up_proj|down_proj.weight`` of
others), under these names or those of `PUBLISHED`. A `Checkpoint` answers to the names of transformers 5 and reads all of
them, only the bytes that are asked for.

Shapes: D hidden, F intermediate, E experts of a layer, R rows asked for (experts, or rows of a gate).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoConfig

from ..errors import InputError
from ..reading import read_json, short
from .config import checked, experts_field, read_document, refusing
from .document import HUB_NAME, first_line
from .store import Fill, Store
from .tokenizer import FILES

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WANTED = ["*.json", "model*.safetensors", *FILES]
"""What is fetched from a hub: no pickles, no second copy of the weights in another format."""
PER_EXPERT = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")), "down_proj": (("w2",), ("down_proj",))}
"""The matrices that are stacked to one expert's fused tensor, by family."""
PUBLISHED = (
    (".mlp.", ".block_sparse_moe."),  # Mixtral, MiniMax
    (".block_sparse_moe.experts.gate_up_proj", ".block_sparse_moe.input_linear.weight"),  # Granite-MoE
    (".block_sparse_moe.experts.down_proj", ".block_sparse_moe.output_linear.weight"),
    (".block_sparse_moe.router.weight", ".block_sparse_moe.router.layer.weight"),
    ("model.", "model.language_model."),  # Qwen3.5-MoE, beside a vision tower
)
"""What transformers 5 calls a tensor, and what it is called in files of the families that call it otherwise."""


def resolve(path_or_name: str, base: Path) -> Path:
    """The folder of ``[model] path``: a folder (relative to ``base``), else a hub name like ``org/name``.

    A hub name is looked up in the local Hugging Face cache and, unless offline, fetched into it.

    Raises:
        InputError: there is no such folder, and no such name in the cache or on the hub.
    """
    try:
        folder = (base / path_or_name).resolve()
        if folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, links in a circle
        raise InputError(f"model.path = {short(path_or_name)}: is no path ({error}); correct it") from error
    what = f"model.path = {path_or_name!r}: no folder {folder}"
    if not HUB_NAME.fullmatch(path_or_name):
        raise InputError(f"{what}, so there is no config.json; give a folder written by save_pretrained, or org/name of a hub")
    try:
        return Path(snapshot_download(path_or_name, allow_patterns=WANTED, ignore_patterns="*.py"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{what} (no config.json), and no model of that name in the Hugging Face cache or on the hub "
            f"({first_line(error)}); correct the name, go online once, unset HF_HUB_OFFLINE, or give a folder"
        ) from error


class Checkpoint:
    """A checkpoint folder of a Hugging Face MoE model; parameters by the names that transformers 5 gives them.

    Attributes:
        path: the folder.
        config: its ``config.json``, parsed by transformers; of a Qwen3.5-MoE its text model's.
        store: the tensors as they lie on disk.

    Raises:
        InputError: no folder, no config, no safetensors (pickles are never loaded), or a file that is broken or incomplete.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = _config(path)
        self.store = Store(files_of(path))

    @property
    def read_B(self) -> int:
        """Bytes of tensors read so far."""
        return self.store.read_B

    @property
    def experts(self) -> int:
        """M.

        Raises:
            NotMoEError: the config names no number of experts.
        """
        return int(getattr(self.config, experts_field(self.config, f"model.path = {str(self.path)!r}")))

    def __contains__(self, name: str) -> bool:
        return self._whole(name) is not None or bool(self._pieces(name, 0))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter, fused.

        Raises:
            InputError: the checkpoint has no such parameter.
        """
        if whole := self._whole(name):
            return self.store.shapes[whole]
        shapes = [self.store.shapes[piece] for piece in self._found(name, 0)]
        return self.experts, sum(shape[0] for shape in shapes), *shapes[0][1:]

    def dtype(self, name: str) -> torch.dtype:
        """The type that a parameter is stored in.

        Raises:
            InputError: the checkpoint has no such parameter, or it is quantised.
        """
        return self.store.dtype(self._first(name))

    def file(self, name: str) -> Path:
        """The file that holds a parameter, or its first part.

        Raises:
            InputError: the checkpoint has no such parameter.
        """
        return self.store.where[self._first(name)]

    def read(
        self,
        name: str,
        rows: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
    ) -> Tensor:
        """A parameter, or R rows of it (experts of a fused parameter, rows of a gate), in fresh memory.

        Args:
            name: the parameter's name in transformers 5.
            rows: indices into the first dimension; None reads all.
            dtype: what the values are converted to; None keeps the stored type.
            shape: what the whole parameter's shape must be.

        Raises:
            InputError: no such parameter, another shape, a row out of range, numbers that are not finite, an unreadable file.
        """
        found = self.shape(name)
        if shape is not None and found != tuple(shape):
            raise InputError(
                f"model.path = {str(self.path)!r}: tensor {name!r} has shape {list(found)}, the config asks for {list(shape)}; "
                "config.json and the weights are of different models"
            )
        if wrong := [m for m in rows or () if not 0 <= m < found[0]]:
            raise InputError(
                f"model.path = {str(self.path)!r}: {name!r} has no row {wrong[0]}; give numbers in 0…{found[0] - 1}"
            )
        whole = self._whole(name)
        out = torch.empty(found if rows is None else (len(rows), *found[1:]), dtype=dtype or self.dtype(name))
        with self.store.reading() as fill:
            if whole and rows is None:
                fill(out, whole, None)
            else:
                for out_row, m in zip(out, range(found[0]) if rows is None else rows, strict=True):
                    self._fill_row(fill, out_row, name, whole, m)
        return out

    def read_into(self, out: Tensor, name: str, m: int) -> None:
        """Row m of a parameter, an expert's, into memory that is there; converted to its type.

        Raises:
            InputError: as `read`.
        """
        with self.store.reading() as fill:
            self._fill_row(fill, out, name, self._whole(name), m)

    def _fill_row(self, fill: Fill, out: Tensor, name: str, whole: str | None, m: int) -> None:
        if whole:
            return fill(out, whole, m)
        pieces = self._found(name, m)
        shapes = [self.store.shapes[piece] for piece in pieces]
        if sum(shape[0] for shape in shapes) != len(out) or any(shape[1:] != out.shape[1:] for shape in shapes):
            raise InputError(
                f"model.path = {str(self.path)!r}: {' and '.join(pieces)} have shapes {shapes}, other experts need together "
                f"{list(out.shape)}; the checkpoint is damaged"
            )
        for piece, shape, at in zip(pieces, shapes, _starts(shapes), strict=True):
            fill(out[at : at + shape[0]], piece, None)
        return None

    def _first(self, name: str) -> str:
        """The name on disk of a parameter, or of its first matrix."""
        return self._whole(name) or self._found(name, 0)[0]

    def _whole(self, name: str) -> str | None:
        """The name under which a parameter is stored in one piece."""
        return next((alias for alias in _aliases(name) if alias in self.store), None)

    def _pieces(self, name: str, m: int) -> list[str]:
        """The names of the matrices that make up one expert's row of a fused parameter; none if it is not stored so."""
        stem, _, kind = name.rpartition(".")
        for names in PER_EXPERT.get(kind, ()):
            wanted = [f"{stem}.{m}.{piece}.weight" for piece in names]
            if found := [whole for piece in wanted if (whole := self._whole(piece))]:
                if len(found) < len(wanted):
                    raise self._missing(next(piece for piece in wanted if not self._whole(piece)))
                return found
        return []

    def _found(self, name: str, m: int) -> list[str]:
        pieces = self._pieces(name, m)
        if not pieces:
            raise self._missing(name if m == 0 else f"{name} of expert {m}")
        return pieces

    def _missing(self, name: str) -> InputError:
        head = "set tie_word_embeddings = true in config.json if it is the embedding, else " if name == "lm_head.weight" else ""
        return InputError(
            f"model.path = {str(self.path)!r}: tensor {name!r} is missing; the checkpoint is incomplete or of another model: "
            f"{head}copy it again, or save it with save_pretrained"
        )


def _aliases(name: str) -> Iterator[str]:
    """Names under which a tensor may lie on disk: as it is called, as it is published, and each in a headless model."""
    published = [name.replace(ours, theirs) for ours, theirs in PUBLISHED if ours in name]
    for alias in (name, *published):
        yield alias
        yield alias.removeprefix("model.").removeprefix("bert.")


def _starts(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    return [sum(shape[0] for shape in shapes[:i]) for i in range(len(shapes))]


def _config(path: Path) -> Any:
    where = f"model.path = {str(path)!r}"
    if not (path / "config.json").is_file():
        raise InputError(f"{where}: no config.json there; give a folder written by save_pretrained")
    document = read_document(path / "config.json")
    if document.get("quantization_config"):
        raise InputError(f"{where}: config.json has a quantization_config; use the checkpoint before it was quantised")
    with refusing(f"{where}: config.json cannot be read", "save it with save_pretrained"):
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return checked(config, str(path / "config.json"))


def files_of(path: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, with the tensors that the index promises of each."""
    if (path / SINGLE).is_file():
        return {path / SINGLE: None}
    if (path / INDEX).is_file():
        return _shards(path / INDEX)
    where = f"model.path = {str(path)!r}"
    if others := sorted(p.name for p in path.glob("*.safetensors")):
        raise InputError(f"{where}: {others[0]} is neither {SINGLE} nor named in a {INDEX}; rename it or add the index")
    pickled = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
    hint = f"{pickled[0]} is a pickle, which is never loaded, as it could run code; " if pickled else ""
    raise InputError(f"{where}: no safetensors file there; {hint}save the model with save_pretrained, which writes safetensors")


def _shards(index: Path) -> dict[Path, set[str] | None]:
    document = read_json(index, "model.path")
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no weight_map in it, which names the file of each tensor; copy the checkpoint again")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise InputError(f"{index}: the shard of tensor {name!r} is {file!r}; must be the name of a file in the folder")
    files, there = set(weight_map.values()), {path.name for path in index.parent.iterdir()}
    for file in sorted(files):
        if Path(file).name != file:
            raise InputError(f"{index}: shard {file!r} lies outside the folder; name files in the folder only")
        if file not in there:
            raise InputError(f"{index}: shard {file!r} is missing; copy it to {index.parent}")
    return {index.parent / file: {name for name, at in weight_map.items() if at == file} for file in sorted(files)}
