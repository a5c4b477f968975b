/// What a pickle may import: only what checkpoints need.

import Tensors

/// The only names that a checkpoint may import.
enum PickleGlobal: Equatable {
    case orderedDict
    case size
    case rebuildTensor, rebuildTensorV3, rebuildParameter, rebuildFromType
    case tensorClass
    /// nil for an unsupported type.
    case dtype(DType?, name: String)
    /// nil: untyped, or of the unsupported type named `foreign`.
    case storage(DType?, foreign: String?)
    case record(Record)
    /// Makes something harmless that no tensor needs.
    case harmless

    /// Record classes of torch.distributed.checkpoint.
    enum Record: String {
        case metadata = "Metadata"
        case tensor = "TensorStorageMetadata"
        case bytes = "BytesStorageMetadata"
        case properties = "TensorProperties"
        case chunk = "ChunkStorageMetadata"
        case index = "MetadataIndex"
        case storage = "StorageMeta"
        case place = "_StorageInfo"
    }

    init?(_ module: String, _ name: String) {
        switch (module, name) {
        case ("collections", "OrderedDict"): self = .orderedDict
        case ("torch", "Size"): self = .size
        case ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"):
            self = .rebuildTensor
        case ("torch._utils", "_rebuild_tensor_v3"): self = .rebuildTensorV3
        case ("torch._utils", "_rebuild_parameter"),
            ("torch._utils", "_rebuild_parameter_with_state"):
            self = .rebuildParameter
        case ("torch._tensor", "_rebuild_from_type_v2"): self = .rebuildFromType
        case ("torch", "Tensor"), ("torch.nn.parameter", "Parameter"): self = .tensorClass
        case ("torch.storage", "UntypedStorage"), ("torch", "UntypedStorage"):
            self = .storage(nil, foreign: nil)
        case ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
            ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
            ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
            ("torch.serialization", "_get_layout"), ("pathlib", _), ("pathlib._local", _),
            ("datetime", _):
            self = .harmless
        case ("torch.distributed.checkpoint.metadata", let type),
            ("torch.distributed._shard.sharded_tensor.metadata", let type),
            ("torch.distributed.checkpoint.filesystem", let type):
            guard let record = Record(rawValue: type) else { return nil }
            self = .record(record)
        case ("torch", "device"), ("_codecs", "encode"), ("builtins", "set"),
            ("__builtin__", "set"), ("builtins", "frozenset"), ("collections", "Counter"):
            self = .harmless
        case ("torch", let type):
            if let dtype = Self.storages[type] {
                self = .storage(dtype, foreign: nil)
            } else if Self.foreign[type] != nil {
                self = .storage(nil, foreign: type)
            } else if let dtype = Self.dtypes[type] {
                self = .dtype(dtype, name: type)
            } else {
                return nil
            }
        default: return nil
        }
    }

    private static let storages: [String: DType] = [
        "DoubleStorage": .f64, "FloatStorage": .f32, "HalfStorage": .f16,
        "BFloat16Storage": .bf16, "LongStorage": .i64, "IntStorage": .i32,
        "ShortStorage": .i16, "CharStorage": .i8, "ByteStorage": .u8, "BoolStorage": .bool,
    ]

    /// Storages of unsupported types, with the bytes of an element: they may occur in tensors that
    /// are not needed.
    static let foreign: [String: Int] = [
        "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt8Storage": 1,
        "QUInt8Storage": 1, "QInt32Storage": 4,
    ]

    /// Element types; those without a `DType` may occur in configurations and in tensors that are not
    /// needed.
    private static let dtypes: [String: DType?] = [
        "float64": .f64, "float32": .f32, "float16": .f16, "bfloat16": .bf16,
        "float8_e4m3fn": .f8e4m3, "float8_e5m2": .f8e5m2, "int64": .i64, "int32": .i32,
        "int16": .i16, "int8": .i8, "uint8": .u8, "bool": .bool,
        "uint16": .none, "uint32": .none, "uint64": .none, "complex64": .none,
        "complex128": .none, "float8_e4m3fnuz": .none, "float8_e5m2fnuz": .none,
        "float8_e8m0fnu": .none, "float4_e2m1fn_x2": .none,
    ]
}
