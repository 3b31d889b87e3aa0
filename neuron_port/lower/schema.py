"""The fields of XLA's HloModuleProto that we write and read, with their numbers.

Numbers are facts of openxla's `xla/service/hlo.proto` and `xla/xla_data.proto`; they never change once
published.
"""

from __future__ import annotations

from neuron_port.lower.wire import Field, Schema


def _int(number: int) -> Field:
    return Field(number, "int")


def _ints(number: int) -> Field:
    return Field(number, "int", repeated=True)


def _text(number: int) -> Field:
    return Field(number, "string")


def _bytes(number: int) -> Field:
    return Field(number, "bytes")


def _message(number: int, name: str) -> Field:
    return Field(number, "message", message=name)


def _messages(number: int, name: str) -> Field:
    return Field(number, "message", repeated=True, message=name)


# PrimitiveType, by the name that torch gives the dtype ("tuple" is XLA's own).
PRIMITIVE_TYPES = {
    "bool": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint8": 6, "uint16": 7, "uint32": 8, "uint64":
    9, "float16": 10, "float32": 11, "float64": 12, "tuple": 13, "opaque": 14, "complex64": 15, "bfloat16":
    16, "token": 17, "complex128": 18, "float8_e5m2": 19, "float8_e4m3fn": 20, "float8_e4m3": 28,
}  # fmt: skip

MUST_ALIAS = 2
API_VERSION_STATUS_RETURNING = 2

# Which LiteralProto field holds the values of a dtype. All but the varint ones are raw little-endian bytes.
LITERAL_FIELDS = {
    "bool": "preds", "int32": "s32s", "int64": "s64s", "uint32": "u32s", "uint64": "u64s", "int8": "s8s",
    "uint8": "u8s", "int16": "s16s", "uint16": "u16s", "float16": "f16s", "bfloat16": "bf16s", "float32":
    "f32s", "float64": "f64s",
}  # fmt: skip
VARINT_LITERALS = ("preds", "s32s", "s64s", "u32s", "u64s")

SCHEMA: Schema = {
    "HloModuleProto": {
        "name": _text(1),
        "entry_computation_name": _text(2),
        "computations": _messages(3, "HloComputationProto"),
        "host_program_shape": _message(4, "ProgramShapeProto"),
        "entry_computation_id": _int(6),
        "input_output_alias": _message(8, "HloInputOutputAliasProto"),
    },
    "HloInputOutputAliasProto": {"entries": _messages(1, "AliasEntryProto")},
    "AliasEntryProto": {
        "output_shape_index": _ints(1),
        "parameter_number": _int(2),
        "parameter_shape_index": _ints(3),
        "kind": _int(4),
    },
    "HloComputationProto": {
        "name": _text(1),
        "instructions": _messages(2, "HloInstructionProto"),
        "program_shape": _message(4, "ProgramShapeProto"),
        "id": _int(5),
        "root_id": _int(6),
    },
    "ProgramShapeProto": {
        "parameters": _messages(1, "ShapeProto"),
        "result": _message(2, "ShapeProto"),
        "parameter_names": Field(3, "string", repeated=True),
    },
    "ShapeProto": {
        "element_type": _int(2),
        "dimensions": _ints(3),
        "tuple_shapes": _messages(4, "ShapeProto"),
        "layout": _message(5, "LayoutProto"),
        "is_dynamic_dimension": _ints(6),
    },
    "LayoutProto": {"minor_to_major": _ints(1)},
    "LiteralProto": {
        "shape": _message(1, "ShapeProto"),
        "preds": _ints(2),
        "u8s": _bytes(3),
        "s32s": _ints(4),
        "s64s": _ints(5),
        "u32s": _ints(6),
        "u64s": _ints(7),
        "f32s": _bytes(8),
        "f64s": _bytes(9),
        "f16s": _bytes(11),
        "bf16s": _bytes(13),
        "s8s": _bytes(15),
        "u16s": _bytes(16),
        "s16s": _bytes(17),
    },
    "HloInstructionProto": {
        "name": _text(1),
        "opcode": _text(2),
        "shape": _message(3, "ShapeProto"),
        "literal": _message(8, "LiteralProto"),
        "parameter_number": _int(9),
        "tuple_index": _int(13),
        "dimensions": _ints(14),
        "window": _message(15, "Window"),
        "convolution_dimension_numbers": _message(16, "ConvolutionDimensionNumbers"),
        "slice_dimensions": _messages(17, "SliceDimensions"),
        "dynamic_slice_sizes": _ints(20),
        "padding_config": _message(21, "PaddingConfig"),
        "channel_id": _int(26),
        "custom_call_target": _text(28),
        "dot_dimension_numbers": _message(30, "DotDimensionNumbers"),
        "gather_dimension_numbers": _message(33, "GatherDimensionNumbers"),
        "gather_slice_sizes": _ints(34),
        "id": _int(35),
        "operand_ids": _ints(36),
        "called_computation_ids": _ints(38),
        "backend_config": _bytes(43),
        "scatter_dimension_numbers": _message(48, "ScatterDimensionNumbers"),
        "replica_groups": _messages(49, "ReplicaGroup"),
        "feature_group_count": _int(50),
        "is_stable": _int(60),
        "comparison_direction": _text(63),
        "frontend_attributes": _message(68, "FrontendAttributes"),
        "custom_call_api_version": _int(77),
    },
    "ReplicaGroup": {"replica_ids": _ints(1)},
    "SliceDimensions": {"start": _int(1), "limit": _int(2), "stride": _int(3)},
    "PaddingConfig": {"dimensions": _messages(1, "PaddingConfigDimension")},
    "PaddingConfigDimension": {
        "edge_padding_low": _int(1),
        "edge_padding_high": _int(2),
        "interior_padding": _int(3),
    },
    "DotDimensionNumbers": {
        "lhs_contracting_dimensions": _ints(1),
        "rhs_contracting_dimensions": _ints(2),
        "lhs_batch_dimensions": _ints(3),
        "rhs_batch_dimensions": _ints(4),
    },
    "GatherDimensionNumbers": {
        "offset_dims": _ints(1),
        "collapsed_slice_dims": _ints(2),
        "start_index_map": _ints(3),
        "index_vector_dim": _int(4),
    },
    "ScatterDimensionNumbers": {
        "update_window_dims": _ints(1),
        "inserted_window_dims": _ints(2),
        "scatter_dims_to_operand_dims": _ints(3),
        "index_vector_dim": _int(4),
    },
    "Window": {"dimensions": _messages(1, "WindowDimension")},
    "WindowDimension": {
        "size": _int(1),
        "stride": _int(2),
        "padding_low": _int(3),
        "padding_high": _int(4),
        "window_dilation": _int(5),
        "base_dilation": _int(6),
    },
    "ConvolutionDimensionNumbers": {
        "kernel_input_feature_dimension": _int(3),
        "kernel_output_feature_dimension": _int(4),
        "kernel_spatial_dimensions": _ints(6),
        "input_batch_dimension": _int(7),
        "input_feature_dimension": _int(8),
        "output_batch_dimension": _int(9),
        "output_feature_dimension": _int(10),
        "input_spatial_dimensions": _ints(11),
        "output_spatial_dimensions": _ints(12),
    },
    "FrontendAttributes": {"map": Field(1, "map")},
}
