"""PyTorch: channels_last, inference_mode, torch.compile (with frozen weights in inference) where it wins."""

import functools
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers import torch_models
from benchmarks.work import CLASSES, Run, Work, random_labels, repeated

LAYOUT = "NCHW channels_last"
_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# JAX multiplies and convolves float32 in TF32 by default where a GPU has it.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
torch.backends.cudnn.benchmark = True
_CUDA_GRAPHS = {"triton.cudagraphs": True} if _DEVICE.type == "cuda" else {}


def describe() -> dict[str, str]:
    """Device and versions in words."""
    name = torch.cuda.get_device_name() if _DEVICE.type == "cuda" else "cpu"
    return {"device": name, "versions": f"torch {torch.__version__}, python {platform.python_version()}"}


def peak_memory() -> int | None:
    """Bytes; None on CPU."""
    return torch.cuda.max_memory_allocated() if _DEVICE.type == "cuda" else None


def forget_peak() -> None:
    """Starts `peak_memory` again."""
    if _DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def variants(work: Work) -> dict[str, Run]:
    """Eager and compiled, for inference compiled with the weights as constants too; on a GPU what is compiled
    is tried in CUDA graphs as well."""
    rng, dtype = np.random.default_rng(0), getattr(torch, work.dtype)
    if work.phase == "matmul":
        a = torch.tensor(rng.standard_normal((work.image_size,) * 2, np.float32)).to(_DEVICE, dtype)
        return {"eager": repeated(torch.inference_mode()(functools.partial(torch.mm, a, a)), _wait)}
    model: Any = torch_models.build(work.backbone, work.alpha)
    if work.phase != "forward":
        with torch.inference_mode():
            features = model.eval()(torch.zeros(1, 3, work.image_size, work.image_size))
        model = torch_models.Classifier(model, features.shape[1], CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # see work.he_normal
    model = model.to(_DEVICE, memory_format=torch.channels_last)
    shape = (work.batch_size, 3, work.image_size, work.image_size)
    images = torch.rand(shape, device=_DEVICE).to(memory_format=torch.channels_last)
    if work.trains:
        labels = torch.tensor(random_labels(work, rng), device=_DEVICE).long()
        return _training(work, model, images, labels)
    model, images = model.eval().to(dtype), images.to(dtype)
    forwards = {"eager": model}
    for name, freezing in {"compile": False, "compile freezing": True}.items():
        forwards[name] = torch.compile(model, options={"freezing": freezing})
        if _CUDA_GRAPHS:
            graphs = {"freezing": freezing, **_CUDA_GRAPHS}
            forwards[f"{name}, CUDA graphs"] = torch.compile(model, options=graphs)
    return {name: _inference(forward, images) for name, forward in forwards.items()}


def _inference(forward: Any, images: torch.Tensor) -> Run:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return forward(images)

    return repeated(call, _wait)


def _training(work: Work, model: Any, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Run]:
    model.train()
    if work.phase != "full_step":
        model.backbone.freeze_all_but(work.learning)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    mixed = torch.autocast(_DEVICE.type, torch.bfloat16, enabled=work.dtype == "bfloat16")

    def step(forward: Any) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with mixed:
                loss = F.cross_entropy(forward(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss

        return call

    calls = {"eager": step(model), "compile": step(torch.compile(model))}
    if _CUDA_GRAPHS:
        calls["compile, CUDA graphs"] = step(torch.compile(model, options=_CUDA_GRAPHS))
    return {name: repeated(call, _wait) for name, call in calls.items()}


def _wait(_: torch.Tensor) -> None:
    if _DEVICE.type == "cuda":
        torch.cuda.synchronize()
