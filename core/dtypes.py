"""Element types: what safetensors, torch, numpy and ONNX call the same one, in plain words."""

# safetensors' name -> torch's, which is numpy's too where numpy has the type
NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
NOT_NUMPY = ("F8_E4M3", "F8_E5M2")  # of those; BF16 comes as its bits
FLOATS = ("F16", "BF16", "F32", "F64")  # a cast makes one of the other
# safetensors' name -> ONNX's, of what a graph's weights are stored in
ONNX = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16", "F64": "DOUBLE", "I64": "INT64", "I8": "INT8"}
# number of ONNX's TensorProto.DataType -> our name
ONNX_TYPES = {1: "float32", 2: "uint8", 3: "int8", 10: "float16", 11: "float64", 16: "bfloat16"}
