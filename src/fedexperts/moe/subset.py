"""Loading only some experts of a model: a device that owns two of eight never holds the other six, nor reads them.

The model is built without memory (on the meta device) and filled tensor by tensor, so that the peak stays near the size of
the result. What comes back is a plain Hugging Face model whose gate knows only the kept experts (`load_subset`), all of
them (`load_full`), or all of them while only the kept ones are resident (`load_streamed`, for `View`'s ``stream``).

Shapes: D hidden, F intermediate, E experts of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .auto import AUTO
from .checkpoint import Checkpoint
from .config import check_memory, experts_field, refusing
from .families import check_family, check_layout, fused_block
from .layer import MoELayer
from .outline import HEADS
from .parts import NotMoEError
from .store import Store

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
NEW_HEADS = (*(f"{head}." for head in HEADS if head != "lm_head"), "bert.pooler.")
"""What is made anew when a checkpoint of a language model lacks it."""


def load_full(
    source: Path | Checkpoint,
    auto_class: Any = AUTO["classifier"],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    outputs: int | None = None,
    dense: bool = False,
) -> nn.Module:
    """The whole model of a checkpoint folder, in evaluation mode.

    Args:
        source: the folder, or its checkpoint.
        auto_class: the transformers class that makes a model of a config, by its task.
        dtype: type of the weights.
        seed: of the classification head, which a checkpoint of a language model lacks.
        outputs: how many a classification head must have, and gets if it is new; None leaves it to the config.
        dense: whether a model without an MoE layer will do.

    Raises:
        InputError: the checkpoint is incomplete, broken, pickled, or fits another config or task.
        NotMoEError: the model is dense, or of a family that the view does not know.
    """
    checkpoint = _checkpoint(source)
    config = copy.deepcopy(checkpoint.config)
    if outputs is not None:
        if any(f"{head}weight" in checkpoint for head in NEW_HEADS) and config.num_labels != outputs:
            raise InputError(
                f"model.path = {str(checkpoint.path)!r}: its head has {config.num_labels} outputs, the tasks need {outputs}; "
                "correct task.labels, or start from a checkpoint without a head"
            )
        config.num_labels = outputs
    model = _blank(checkpoint, config, auto_class, dtype, dense)
    return _filled(model, checkpoint, {}, seed)


def new_head(model: nn.Module, source: Path | Checkpoint) -> list[str]:
    """Tensors of a model's head that its checkpoint lacks: they are random, or zero."""
    checkpoint = _checkpoint(source)
    return [name for name in model.state_dict() if name.startswith(NEW_HEADS) and name not in checkpoint]


def load_subset(
    source: Path | Checkpoint,
    keep: Sequence[int],
    auto_class: Any = AUTO["classifier"],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> nn.Module:
    """A plain model of len(keep) experts: experts ``keep`` of every layer, their gate rows, and all that is no expert.

    It computes what the full model does when its gate is masked with −∞ to ``keep``; K is at most len(keep). Give the same
    ``keep`` to `View` as ``kept``. Other arguments and errors: see `load_full`.

    Raises:
        InputError: ``keep`` is empty, has doubles, or names an expert outside 0…M−1.
    """
    checkpoint = _checkpoint(source)
    if not keep:
        raise InputError("keep = (): a model needs at least one expert; without any, stream them (load_streamed)")
    _check_keep(keep, checkpoint)
    config = copy.deepcopy(checkpoint.config)
    setattr(config, experts_field(config, str(checkpoint.path)), len(keep))
    config.num_experts_per_tok = min(config.num_experts_per_tok, len(keep))
    model = _blank(checkpoint, config, auto_class, dtype)
    rows = {f"{name}.{tensor}": keep for name, _, gate in _blocks(model) for tensor in (*EXPERTS, f"{gate}.weight")}
    rows |= {f"{layer}.gate.{kind}": keep for layer in _own_layers(model) for kind in ("weight", "bias")}
    return _filled(model, checkpoint, rows, seed, keep)


def load_streamed(
    source: Path | Checkpoint,
    keep: Sequence[int],
    auto_class: Any = AUTO["classifier"],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> nn.Module:
    """A model whose gates have all rows while only the experts ``keep`` (possibly none) are resident.

    It runs only under ``View(model, kept=keep, stream=checkpoint)``. Arguments and errors: see `load_subset`.
    """
    checkpoint = _checkpoint(source)
    _check_keep(keep, checkpoint)
    model = _blank(checkpoint, checkpoint.config, auto_class, dtype)
    rows: dict[str, Sequence[int]] = {}
    for name, block, _ in _blocks(model):
        block.experts.num_experts = len(keep)
        for tensor in EXPERTS:
            whole = block.get_parameter(tensor)
            setattr(block.experts, tensor.rpartition(".")[2], nn.Parameter(whole[: len(keep)]))
            rows[f"{name}.{tensor}"] = keep
    return _filled(model, checkpoint, rows, seed)


def load_into(module: nn.Module, path: Path, keep: Sequence[int]) -> None:
    """Fill a module, whose `MoELayer` have len(keep) experts each, from the safetensors file of the full module.

    Expert i of each layer becomes expert keep[i] of the file, with its gate row; all other tensors have the same names.

    Raises:
        InputError: a tensor is missing or of another shape, an expert does not exist, or the file is broken.
        NotMoEError: the module has no `MoELayer`.
    """
    layers = _own_layers(module)
    if not layers:
        raise NotMoEError(f"{type(module).__name__}: no MoELayer in it")
    store = Store({path: None})
    with store.reading() as fill:
        for name, tensor in module.state_dict().items():
            if any(name in (_join(layer, "gate.weight"), _join(layer, "gate.bias")) for layer in layers):
                _check_stored(store, path, name, (None, *tensor.shape[1:]), keep)
                for row, m in zip(tensor, keep, strict=True):
                    fill(row, name, m)
                continue
            name = _renumbered(name, layers, keep)
            _check_stored(store, path, name, tuple(tensor.shape))
            fill(tensor, name, None)


def _own_layers(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, MoELayer)]


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _renumbered(name: str, layers: Sequence[str], keep: Sequence[int]) -> str:
    """The name that a tensor of a module of len(keep) experts has in the full module, if it is in an expert of our layers."""
    for layer in layers:
        if name.startswith(prefix := _join(layer, "experts.")):
            i, rest = name.removeprefix(prefix).split(".", 1)
            return f"{prefix}{keep[int(i)]}.{rest}"
    return name


def _check_stored(
    store: Store, path: Path, name: str, shape: tuple[int | None, ...], keep: Sequence[int] | None = None
) -> None:
    if name not in store:
        raise InputError(f"{path}: tensor {name!r} is missing; save the full module's state dict with safetensors")
    found = store.shapes[name]
    if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
        raise InputError(f"{path}: tensor {name!r} has shape {list(found)}, the module needs {list(shape)}; build it alike")
    if wrong := [m for m in keep or () if not 0 <= m < found[0]]:
        raise InputError(f"keep = {list(keep or ())}: there is no expert {wrong[0]}; give numbers in 0…{found[0] - 1}")


def _checkpoint(source: Path | Checkpoint) -> Checkpoint:
    return source if isinstance(source, Checkpoint) else Checkpoint(source)


def _check_keep(keep: Sequence[int], checkpoint: Checkpoint) -> None:
    experts = checkpoint.experts
    if wrong := [m for m in keep if not 0 <= m < experts]:
        raise InputError(f"keep = {list(keep)}: there is no expert {wrong[0]}; give numbers in 0…{experts - 1}")
    if len(set(keep)) < len(keep):
        raise InputError(f"keep = {list(keep)}: an expert is named twice; name each once")


def _blank(checkpoint: Checkpoint, config: Any, auto_class: Any, dtype: torch.dtype, dense: bool = False) -> nn.Module:
    """The model without memory."""
    where = f"model.path = {str(checkpoint.path)!r}"
    if not dense:
        experts_field(config, where)
    check_family(config, where)
    what = f"{where}: transformers cannot build {auto_class.__name__} of a {config.model_type!r} config"
    with refusing(what, "correct config.json, or use a family that has such a model"), torch.device("meta"):
        model: nn.Module = auto_class.from_config(config, dtype=dtype, trust_remote_code=False)
    if not (dense or list(_blocks(model)) or _own_layers(model)):
        raise NotMoEError(
            f"{where}: no Mixture-of-Experts layer in {type(model).__name__}; build one of a dense model with fedexperts build"
        )
    return model


def _blocks(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """The MoE blocks of a Hugging Face model: name, module, and the name of the router in it."""
    for name, module in model.named_modules():
        if block := fused_block(module):
            fused, gate_name, gate = block
            check_layout(fused, gate)
            yield name, module, gate_name


def _filled(
    model: Any, checkpoint: Checkpoint, rows: Mapping[str, Sequence[int]], seed: int, keep: Sequence[int] | None = None
) -> nn.Module:
    """Read every tensor of a blank model: ``rows`` of those named there, else all; then what no checkpoint stores.

    ``keep`` are the experts that layers of our own hold; None: all.
    """
    layers = [] if keep is None else _own_layers(model)
    names_of: dict[int, list[str]] = {}
    blanks = model.state_dict(keep_vars=True)
    for name, blank in blanks.items():
        names_of.setdefault(id(blank), []).append(name)
    tensors: dict[str, Tensor] = {}
    check_memory(model, next(model.parameters()).dtype, f"model.path = {str(checkpoint.path)!r}")
    for names in names_of.values():
        name, blank = names[0], blanks[names[0]]
        if name.startswith(NEW_HEADS) and name not in checkpoint:
            tensors[name] = _new_head(blank, model.config, seed)
        elif len(names) > 1:
            tensors |= one_or_more(names, checkpoint, blank.dtype, blank.shape)
        else:
            shape = (checkpoint.experts, *blank.shape[1:]) if name in rows else blank.shape
            tensors[name] = checkpoint.read(_renumbered(name, layers, keep or ()), rows.get(name), blank.dtype, shape)
    model.load_state_dict(tensors, strict=False, assign=True)
    _tie(model, tensors)
    _rebuild_buffers(model)
    if left := [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]:
        raise InputError(
            f"model.path = {str(checkpoint.path)!r}: {left[0]!r} is in no checkpoint; this family is not supported"
        )
    return model.eval()  # type: ignore[no-any-return]  # the model is taken as Any: transformers is untyped


def one_or_more(
    names: Sequence[str], checkpoint: Checkpoint, dtype: torch.dtype | None = None, shape: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """What a checkpoint holds of a tensor that has several names by the config, as an embedding that is the head too.

    As in transformers: one tensor under its first name, whichever it has in the file, and what differs from it under its own.

    Raises:
        InputError: the checkpoint has it under none of the names.
    """
    stored = [name for name in names if name in checkpoint] or [names[0]]
    first = checkpoint.read(stored[0], None, dtype, shape)
    others = {
        name: tensor for name in stored[1:] if not torch.equal(tensor := checkpoint.read(name, None, dtype, shape), first)
    }
    return {names[0]: first, **others}


def _tie(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Make one parameter of those that are one tensor; the config says so of the others, for whoever reads it next."""
    for name in [name for name in model.all_tied_weights_keys if name in tensors]:
        del model.all_tied_weights_keys[name]
        model.config.tie_word_embeddings = False
    model.tie_weights(recompute_mapping=False)


def _new_head(blank: Tensor, config: Any, seed: int) -> Tensor:
    """A classification head that depends on the seed alone."""
    if blank.ndim < 2:
        return torch.zeros(blank.shape, dtype=blank.dtype)
    draw = torch.randn(blank.shape, generator=torch.Generator().manual_seed(seed))
    return (draw * getattr(config, "initializer_range", 0.02)).to(blank.dtype)


def _rebuild_buffers(model: Any) -> None:
    """Compute what is not saved, as the frequencies of rotary embeddings; what transformers does not compute stays blank."""
    stale = [(m, name, b) for m in model.modules() for name, b in m.named_buffers(recurse=False) if b.is_meta]
    if not stale:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = not tensor.is_meta  # which keeps transformers from drawing it again
    fresh = [torch.empty_like(blank, device="cpu") for _, _, blank in stale]
    for (module, name, _), buffer in zip(stale, fresh, strict=True):
        setattr(module, name, buffer)
    for module in dict.fromkeys(module for module, _, _ in stale):
        model._init_weights(module)
    for (module, name, blank), buffer in zip(stale, fresh, strict=True):
        if getattr(module, name) is buffer and not buffer._version:  # nobody has written to it
            setattr(module, name, blank)
