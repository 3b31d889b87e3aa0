"""What earlier NKI versions had and 0.6 has not, each with its cure in 0.6 terms.

Sources: the NKI migration guide (nki/migration/index.rst) and release notes of the public SDK documentation.
"""

from __future__ import annotations

# Full name -> (rule, cure).
REMOVED = {
    "nki.isa.tensor_copy_dynamic_src": (
        "E17",
        "nisa.tensor_copy(dst=..., src=tensor.ap(pattern, scalar_offset=index, indirect_dim=...))",
    ),
    "nki.isa.tensor_copy_dynamic_dst": (
        "E17",
        "nisa.tensor_copy(dst=tensor.ap(pattern, scalar_offset=index, indirect_dim=...), src=...)",
    ),
    "nki.language.mgrid": (
        "E11",
        "slice the tensor: t[0:128, 0:512]; what slices cannot say, t.ap(pattern) can",
    ),
    "nki.language.arange": ("E11", "slice the tensor: t[0:128, start:end]; index values come from nisa.iota"),
    "nki.language.par_dim": (
        "E11",
        "make the partition dimension the first one: a list of [P, F] tiles, or one [P, B, F] tile",
    ),
    "nki.language.spmd_dim": ("E24", "launch with kernel[lnc] and split the work by nl.program_id(0)"),
    "nki.language.nc": ("E24", "launch with kernel[lnc]; the grid is the number of cores, 1 or 2"),
    "nki.language.loop_reduce": (
        "E24",
        "accumulate in PSUM (nisa.nc_matmul) or in an SBUF tile that the loop updates",
    ),
    "nki.language.atomic_rmw": ("E24", "nisa.dma_compute(dst, [src, dst], reduce_op=nl.add)"),
    "nki.language.all_reduce": ("E24", "nki.collectives.all_reduce(srcs=[...], dsts=[...], ...)"),
    "nki.language.fp32": ("E24", "write the number: the least finite float32 is -3.4028234663852886e+38"),
    "nki.compiler.sbuf": ("E24", "nl.ndarray(shape, dtype, buffer=nl.sbuf, address=(partition, byte))"),
    "nki.compiler.psum": (
        "E24",
        "nl.ndarray(shape, dtype, buffer=nl.psum, address=(partition, bank * 2048))",
    ),
    "nki.benchmark": ("E24", "call the kernel with NumPy arrays on a device and use neuron-explorer"),
    "nki.profile": ("E24", "call the kernel with NumPy arrays on a device and use neuron-explorer"),
    "nki.baremetal": ("E24", "call the jitted kernel with NumPy arrays"),
    "nki.simulate_kernel": ("E24", "nki.simulate(kernel)(*arrays)"),
    "nki.trace": ("E24", "nki.jit"),
}

# (function or "*", parameter) -> (rule, cure). "*" stands for every instruction of nki.isa.
REMOVED_PARAMETERS = {
    ("*", "mask"): (
        "E10",
        "slice to the valid part: end = min(start + 128, size) and t[start:end]; or write an index list with .ap",
    ),
    ("*", "dtype"): ("E10", "the dtype is that of dst: allocate dst with it, nl.ndarray(shape, dtype)"),
    ("dma_copy", "dst_rmw_op"): ("E15", "nisa.dma_compute(dst, [src, dst], reduce_op=nl.add)"),
    ("dma_copy", "unique_indices"): (
        "E15",
        "nisa.dma_compute(dst, [src, dst], reduce_op=nl.add, unique_indices=True)",
    ),
    ("register_move", "imm"): ("E16", "source = nisa.register_alloc(42); nisa.register_move(dst, source)"),
    ("sendrecv", "use_gpsimd_dma"): ("E16", "dma_engine=nisa.dma_engine.gpsimd_dma (True) or .dma (False)"),
    ("nc_matmul", "psumAccumulateFlag"): (
        "E16",
        "accumulate=True, False, or None for the first write overwrites",
    ),
    ("nc_matmul", "is_moving_zero"): ("E16", "is_moving_onezero"),
    ("affine_select", "pred"): (
        "E16",
        "pattern=[[step, count], ...], channel_multiplier=, offset= and cmp_op= describe the predicate",
    ),
    ("iota", "expr"): ("E16", "pattern=[[step, count], ...], offset= and channel_multiplier="),
    ("memset", "shape"): ("E16", "allocate dst with that shape: nl.ndarray(shape, dtype)"),
    ("collective_permute_implicit", "num_channels"): ("E16", "channel_ids=[0, 1]"),
    ("collective_permute_implicit_current_processing_rank_id", "num_channels"): ("E16", "drop it"),
}

# Names that still work and are deprecated -> what to write instead.
DEPRECATED = {
    "nki.language.affine_range": "range",
    "nki.language.sequential_range": "range",
    "nki.language.static_range": "range",
    "nki.isa.tensor_engine": "nisa.engine.tensor",
    "nki.isa.vector_engine": "nisa.engine.vector",
    "nki.isa.scalar_engine": "nisa.engine.scalar",
    "nki.isa.gpsimd_engine": "nisa.engine.gpsimd",
    "nki.isa.unknown_engine": "nisa.engine.unknown",
    "nki.language.tile_size.total_available_sbuf_size": "nl.tile_size.sbuf_fmax_bytes",
    "nki.language.tile_size.psum_fmax": "nl.tile_size.psum_bank_fmax",
}

# `nl` functions that simulate or compile in part and fail on hardware -> (why, cure). Known issues of 0.3 and 0.4.
HARDWARE_LIMITS = {
    "nki.language.divide": (
        "the hardware has no division",
        "multiply by the reciprocal: nisa.reciprocal, then nisa.tensor_tensor(op=nl.multiply)",
    ),
    "nki.language.fmod": ("the hardware has no modulo", "x - floor(x / y) * y from the primitive operations"),
    "nki.language.mod": ("the hardware has no modulo", "x - floor(x / y) * y from the primitive operations"),
}
