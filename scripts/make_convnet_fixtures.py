# SPDX-License-Identifier: Apache-2.0
"""Make the golden data of tests/parity/convnets: tiny ResNets and DenseNets, perturbed, and what they compute.

Needs torch, transformers and timm, in an environment of its own (nothing else of this repository is imported):

    python scripts/make_convnet_fixtures.py                     write tests/parity/convnets
    python scripts/make_convnet_fixtures.py --verify FOLDER     load FOLDER/CASE as jaxneuro saved it, and compare
    python scripts/make_convnet_fixtures.py --torchvision       compare timm's modules with torchvision's, full size

timm's ResNet and DenseNet carry torchvision's names of tensors and compute the same; unlike torchvision's they can be
made small. Each case is a folder as its library writes it (config.json, model.safetensors) and expected.npz: pixels
(channels last, sides that nothing divides), the output, the map after the stem, every block's output, and what a
DenseNet's transitions give. Norms have scales, biases and running statistics far from 1 and 0.
"""

import argparse
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
import transformers

FIXTURES = Path(__file__).parents[1] / "tests" / "parity" / "convnets"
SEED = 20250806
ROWS, COLUMNS, BATCH = 35, 30, 2

_HF = {"num_channels": 2, "embedding_size": 6, "hidden_sizes": [6, 8], "depths": [3, 2], "layer_type": "basic"}
_BOTTLENECK = {**_HF, "layer_type": "bottleneck", "hidden_sizes": [12, 16]}
_TIMM = {"in_chans": 1, "num_classes": 5, "layers": (2, 1, 1, 1), "channels": (4, 4, 6, 8)}
_DENSE = {"in_chans": 2, "num_classes": 5, "growth_rate": 4, "block_config": (2, 3, 1), "bn_size": 2}
# case: (transformers' class or timm's architecture, config). Every switch of jaxneuro's ConvNet appears.
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "resnet-basic": ("ResNetForImageClassification", {**_HF, "num_labels": 5}),
    "resnet-bottleneck": ("ResNetForImageClassification", {**_BOTTLENECK, "num_labels": 3}),
    "resnet-first-paper": (
        "ResNetForImageClassification",
        {**_BOTTLENECK, "downsample_in_bottleneck": True, "downsample_in_first_stage": True, "hidden_act": "gelu"},
    ),
    "resnet-base": ("ResNetModel", {**_HF, "hidden_act": "silu"}),
    "timm-resnet-basic": ("resnet18", _TIMM),
    "timm-resnet-bottleneck": ("resnet50", _TIMM),
    "timm-resnext": ("resnext50_32x4d", {**_TIMM, "cardinality": 4, "base_width": 32}),
    "timm-densenet": ("densenet121", _DENSE),
}


def build(case: str) -> torch.nn.Module:
    """The model of a case: the library's own initialisation, then everything that norms know moved."""
    name, config = CASES[case]
    torch.manual_seed(SEED + list(CASES).index(case))
    if name.startswith("ResNet"):
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**config))
    else:
        model = timm.create_model(name, **config)
    model = model.float().eval()
    perturb(model)
    return model


def perturb(model: torch.nn.Module) -> None:
    """Norms far from where they start, biases that are not zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(0.7 + 0.3 * torch.randn_like(module.weight))
                module.bias.copy_(0.3 * torch.randn_like(module.bias))
                module.running_mean.copy_(0.3 * torch.randn_like(module.running_mean))
                module.running_var.copy_(0.3 + torch.rand_like(module.running_var))
                module.num_batches_tracked.fill_(7)
            elif isinstance(module, torch.nn.Linear):
                module.bias.copy_(0.3 * torch.randn_like(module.bias))


def pictures(channels: int) -> torch.Tensor:
    """Random pixels, channels last, in steps of 1/8: they take little room."""
    shape = BATCH, ROWS, COLUMNS, channels
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(SEED)) / 8


def watched(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """{key in expected.npz: the module whose output it is}; a block is "stage.block"."""
    if hasattr(model, "features"):
        found = {"stem": model.features.pool0}
        for name, module in model.features.named_children():
            if name.startswith("denseblock"):
                s = int(name.removeprefix("denseblock")) - 1
                found |= {f"{s}.{b}": layer for b, layer in enumerate(module.children())}
            elif name.startswith("transition"):
                found[f"{int(name.removeprefix('transition')) - 1}.transition"] = module
        return found
    if hasattr(model, "maxpool"):  # its stem always has 64 channels: too large to keep
        stem, stages = {}, [m for n, m in model.named_children() if n.startswith("layer")]
    else:
        base = getattr(model, "resnet", model)
        stem, stages = {"stem": base.embedder}, [stage.layers for stage in base.encoder.stages]
    return stem | {f"{s}.{b}": m for s, stage in enumerate(stages) for b, m in enumerate(stage)}


def run(model: torch.nn.Module, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """Output and what is watched, channels last."""
    seen: dict[str, np.ndarray] = {}

    def watch(name: str) -> object:
        return lambda m, args, out: seen.update({name: out.permute(0, 2, 3, 1).numpy()})

    hooks = [m.register_forward_hook(watch(name)) for name, m in watched(model).items()]
    with torch.no_grad():
        out = model(pixels.permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    result = {"pixels": pixels.numpy(), **seen}
    if isinstance(out, torch.Tensor):
        return result | {"out": out.numpy()}
    if "pooler_output" in out:
        result["pooled"] = out.pooler_output[:, :, 0, 0].numpy()
    return result | {"out": out[0].permute(0, 2, 3, 1).numpy() if out[0].ndim == 4 else out[0].numpy()}


def write(case: str) -> None:
    """One case: the checkpoint as its library writes it, and what it computes."""
    model, folder = build(case), FIXTURES / case
    name, config = CASES[case]
    if name.startswith("ResNet"):
        model.save_pretrained(folder)
        channels = model.config.num_channels
    else:
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
        args = {k: v for k, v in config.items() if k != "num_classes"}
        about = {"architecture": name, "num_classes": config["num_classes"], "num_features": model.num_features}
        about |= {"model_args": args, "pretrained_cfg": {"tag": "tiny", "custom_load": False}}
        (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        channels = config["in_chans"]
    (folder / "model.safetensors").chmod(0o644)
    np.savez_compressed(folder / "expected.npz", allow_pickle=False, **run(model, pictures(channels)))


def verify(folder: Path) -> None:
    """Load what jaxneuro saved with the library it came from, and compare with the golden output."""
    for case, (name, _) in CASES.items():
        if name.startswith("ResNet"):
            cls = getattr(transformers, name)
            model, report = cls.from_pretrained(folder / case, output_loading_info=True)
            wrong = {k: sorted(v) for k, v in report.items() if v}
        else:
            about = json.loads((folder / case / "config.json").read_text())
            model = timm.create_model(name, num_classes=about["num_classes"], **about.get("model_args", {}))
            wrong = model.load_state_dict(safetensors.torch.load_file(folder / case / "model.safetensors"))
            wrong = [*wrong.missing_keys, *wrong.unexpected_keys]
        golden = np.load(FIXTURES / case / "expected.npz")
        same = np.array_equal(run(model.eval(), torch.tensor(golden["pixels"]))["out"], golden["out"])
        print(f"{case:24s} {'equal' if same else 'DIFFERS'} {wrong or ''}")
        if wrong or not same:
            raise SystemExit(1)


def torchvision_too() -> None:
    """Full-size torchvision models and timm's with their tensors: equal outputs."""
    import torchvision

    for name in ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "densenet161"):
        torch.manual_seed(SEED)
        theirs, ours = getattr(torchvision.models, name)().eval(), timm.create_model(name).eval()
        perturb(theirs)
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            pixels = torch.randn(1, 3, 70, 64)
            a, b = theirs(pixels), ours(pixels)
        print(f"{name:24s} largest difference {float((a - b).abs().max() / a.abs().max()):.1e} of the largest logit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which; all by default")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="folder of cases saved by jaxneuro")
    parser.add_argument("--torchvision", action="store_true", help="compare timm with torchvision, full size")
    args = parser.parse_args()
    if args.verify:
        return verify(args.verify)
    if args.torchvision:
        return torchvision_too()
    for case in args.cases or CASES:
        write(case)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, timm, np)}
    versions["python"] = platform.python_version()
    about = {"made_by": "scripts/make_convnet_fixtures.py", "seed": SEED, "versions": versions}
    (FIXTURES / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
