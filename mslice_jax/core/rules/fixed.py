"""Primitives whose axes all keep their sizes, and why each does.

They have an entry of their own, so that a report tells what stands in the way and what
could be done about it. A primitive that nobody thought of is fixed too, but says only
that there is no rule.
"""

from collections.abc import Sequence

from .base import Dims, Tie, fix_everything, rule

_KERNEL = "a kernel is written for the sizes of its blocks"
_FOREIGN = "foreign code takes the sizes that it was built for"
HOST = "what a Python function on the host does with its axes is not known"
_CUDNN = "a cuDNN kernel; dot_product_attention narrows with implementation='xla'"
_SCALED = "a cuDNN kernel; jax.lax.scaled_dot narrows by whole blocks"
_REF = "a mutable array is read and written in parts"
_EXPORTED = "an exported program keeps the sizes that it was exported with"
_STARTED = "a collective that has only been started"
_COUNTERS = "counters of a random number generator"

FIXED: dict[str, str] = {
    "accum_grad_in_ref": _REF,
    "addupdate": _REF,
    "after_all": "orders effects",
    "all_gather_done": _STARTED,
    "all_gather_reduced_start": _STARTED,
    "all_gather_start": _STARTED,
    "all_to_all_done": _STARTED,
    "all_to_all_start": _STARTED,
    "buffer_callback": HOST,
    "call_exported": _EXPORTED,
    "check": "an error message is made from the entries",
    "create_token": "orders effects",
    "cudnn_fusion": _CUDNN,
    "custom_partitioning": "its author's partitioning is for these sizes",
    "dot_product_attention_bwd": _CUDNN,
    "dot_product_attention_bwd_wrapper": _CUDNN,
    "dot_product_attention_fp8_bwd": _CUDNN,
    "dot_product_attention_fp8_bwd_wrapper": _CUDNN,
    "dot_product_attention_fp8_fwd": _CUDNN,
    "dot_product_attention_fp8_fwd_wrapper": _CUDNN,
    "dot_product_attention_fwd": _CUDNN,
    "dot_product_attention_fwd_wrapper": _CUDNN,
    "empty_ref": _REF,
    "ffi_call": _FOREIGN,
    "free_ref": _REF,
    "freeze": _REF,
    "get": _REF,
    "io_callback": HOST,
    "iota_2x32_shape": _COUNTERS,
    "mpmd_map": _KERNEL,
    "new_ref": _REF,
    "pallas_call": _KERNEL,
    "pbroadcast_done": _STARTED,
    "pbroadcast_start": _STARTED,
    "philox2x32": _COUNTERS,
    "philox4x32": _COUNTERS,
    "ppermute_done": _STARTED,
    "ppermute_start": _STARTED,
    "precv": _STARTED,
    "program_order": "orders effects",
    "psend": _STARTED,
    "psum_done": _STARTED,
    "pure_callback": HOST,
    "psum_invariant_start": _STARTED,
    "psum_start": _STARTED,
    "ragged_all_to_all": "rows are sent to devices by counts known at run time",
    "reduce_scatter_done": _STARTED,
    "reduce_scatter_start": _STARTED,
    "run_state": _REF,
    "scaled_matmul": _SCALED,
    "scaled_matmul_wrapper": _SCALED,
    "swap": _REF,
    "threefry4x32": _COUNTERS,
    "tpu_custom_call": _KERNEL,
    "unreachable": "raises an error when it runs",
    "unreduced_psum_start": _STARTED,
    "unreduced_reduce_scatter_start": _STARTED,
}


def _enter(name: str, text: str) -> None:
    def tie(t: Tie) -> Sequence[Dims]:
        return fix_everything(t, text)

    tie.__doc__ = f"fixed: {text}"
    rule(name)(tie)


for _name, _text in FIXED.items():
    _enter(_name, _text)
