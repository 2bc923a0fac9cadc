# SPDX-License-Identifier: Apache-2.0
"""SAELens' configs before version 6: one flat object that mixes the dictionary, its site and its training."""

from collections.abc import Mapping
from typing import Any, Final

from ...errors import shown

_RENAMED: Final = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn": "activation_fn_str",
}
_OF_THE_DICTIONARY: Final = (
    *("architecture", "d_in", "d_sae", "k", "dtype", "device", "apply_b_dec_to_input"),
    *("finetuning_scaling_factor", "reshape_activations"),
)
_NORMALISED: Final = {None: "none", False: "none", True: "expected_average_only_in"}
"""Before it was a name it was a flag."""


def to_v6(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config as version 6 has it; what does not describe the dictionary becomes its metadata.

    Source: SAELens 6.54, `handle_pre_6_0_config`, which drops what is unknown; here nothing is lost.

    Example:
      >>> old = {"d_in": 2, "d_sae": 4, "hook_point": "blocks.0.hook_resid_pre", "l1_coefficient": 8e-5}
      >>> new = to_v6(old)
      >>> new["architecture"], new["metadata"]["hook_name"], new["metadata"]["l1_coefficient"]
      ('standard', 'blocks.0.hook_resid_pre', 8e-05)
    """
    config = {_RENAMED.get(key, key): value for key, value in flat.items()}
    activation = config.pop("activation_fn_str", "relu")
    arguments = config.pop("activation_fn_kwargs", None) or {}
    normalised = config.pop("normalize_activations", None)
    out = {key: config.pop(key) for key in _OF_THE_DICTIONARY if key in config}
    out.setdefault("architecture", "standard")
    if activation == "topk" and isinstance(arguments, Mapping):
        out |= {"architecture": "topk", **arguments}
    elif activation != "relu" or arguments:  # another function: no architecture has this name, so the loader refuses
        called = " ".join(shown(part) for part in (activation, arguments) if part != {})
        out["architecture"] = f"{shown(out['architecture'])} with {called}"
    if normalised is None or isinstance(normalised, bool):
        normalised = _NORMALISED[normalised]
    out.setdefault("reshape_activations", "hook_z" if "hook_z" in str(config.get("hook_name")) else "none")
    return {**out, "normalize_activations": normalised, "metadata": config}
