/// Tensors in mapped files: what containers of every format consist of.

import Ground
import Tensors

/// How a checkpoint is stored on disk.
public enum CheckpointFormat: String, Sendable {
    case safetensors
    /// Several files, with an index or with numbers in their names.
    case sharded = "several files"
    /// What torch.save has written since 1.6: a zip archive.
    case torchArchive = "PyTorch archive"
    /// What torch.save wrote before 1.6: a stream of pickles.
    case torchLegacy = "PyTorch legacy stream"
    /// A folder of torch.distributed.checkpoint.
    case torchDistributed = "PyTorch distributed checkpoint"
    case gguf = "GGUF"
}

/// A tensor in mapped files. Everything has been checked: the bytes are inside the files, and shapes
/// and sizes do not overflow.
struct StoredTensor: Sendable {
    /// Where the elements are.
    enum Source: Sendable {
        /// `byteCount` bytes from `offset`.
        case contiguous(MappedFile, offset: Int)
        /// A view: the byte of its first element, and strides in elements.
        case strided(MappedFile, offset: Int, strides: [Int])
        /// GGML's blocks from `offset`, decoded to the tensor's type.
        case blocks(MappedFile, offset: Int, GGMLBlock)
        /// Contiguous parts that fill the tensor without overlap.
        case parts([Part])
    }

    struct Part: Sendable {
        let file: MappedFile
        let offset: Int
        /// The position of the part's first element in the tensor, and the part's extents.
        let start, shape: [Int]
    }

    var name: String
    let dtype: DType
    let shape: [Int]
    let source: Source
    /// Checksums of the bytes that contain the tensor.
    var checksums: [Checksum] = []

    /// The checksum that a range of a file should have.
    struct Checksum: Sendable {
        let file: MappedFile
        let range: Range<Int>
        let crc: UInt32
    }

    /// Bytes of the contiguous tensor.
    var byteCount: Int { shape.reduce(1, *) * dtype.byteCount }
    var info: TensorInfo { TensorInfo(name: name, shape: shape, dtype: dtype) }
}

extension StoredTensor {
    /// The tensor: mapped if the file holds the elements in order and aligned, otherwise a copy.
    func tensor() -> Tensor {
        switch source {
        case .contiguous(let file, let offset): contiguous(file, offset)
        case .strided(let file, let offset, let strides): strided(file, offset, strides)
        case .blocks(let file, let offset, let block): decoded(file, offset, block)
        case .parts(let parts): joined(parts)
        }
    }

    /// Lets the system drop the pages that hold the elements.
    func forget() {
        switch source {
        case .contiguous(let file, let offset): file.forget(offset..<offset + byteCount)
        case .strided: break
        case .blocks(let file, let offset, let block):
            file.forget(offset..<offset + block.byteCount(elements: shape.reduce(1, *)))
        case .parts(let parts):
            for part in parts {
                let count = part.shape.reduce(1, *) * dtype.byteCount
                part.file.forget(part.offset..<part.offset + count)
            }
        }
    }

    private func contiguous(_ file: MappedFile, _ offset: Int) -> Tensor {
        let bytes = UnsafeRawBufferPointer(rebasing: file.bytes[offset..<offset + byteCount])
        if offset % dtype.byteCount == 0 {
            return Tensor(
                Shape(shape), dtype, storage: HostStorage(borrowing: bytes, owner: file))
        }
        // Unaligned elements (unpadded headers, legacy streams) are copied to aligned memory.
        let copy = Tensor.host(Shape(shape), dtype)
        UnsafeMutableRawBufferPointer(start: copy.hostAddress, count: bytes.count)
            .copyMemory(from: bytes)
        return copy
    }

    /// A contiguous copy of a view with arbitrary strides.
    private func strided(_ file: MappedFile, _ offset: Int, _ strides: [Int]) -> Tensor {
        let copy = Tensor.host(Shape(shape), dtype)
        let size = dtype.byteCount
        var index = [Int](repeating: 0, count: shape.count)
        var source = offset
        for place in 0..<copy.shape.count {
            (copy.hostAddress + place * size).copyMemory(
                from: UnsafeRawBufferPointer(rebasing: file.bytes[source..<source + size])
                    .baseAddress!, byteCount: size)
            // Odometer: the last axis turns fastest.
            var axis = index.count - 1
            while axis >= 0 {
                index[axis] += 1
                source += strides[axis] * size
                if index[axis] < shape[axis] { break }
                source -= strides[axis] * size * shape[axis]
                index[axis] = 0
                axis -= 1
            }
        }
        return copy
    }

    private func joined(_ parts: [Part]) -> Tensor {
        let whole = Tensor.host(Shape(shape), dtype)
        let size = dtype.byteCount
        for part in parts {
            // Rows along the last axis are contiguous in both.
            let row = (part.shape.last ?? 1) * size
            forEachIndex(of: Array(part.shape.dropLast())) { place, index in
                var target = 0
                for axis in shape.indices {
                    let at = part.start[axis] + (axis < index.count ? index[axis] : 0)
                    target = target * shape[axis] + at
                }
                let start = part.offset + place * row
                (whole.hostAddress + target * size).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: part.file.bytes[start..<start + row])
                        .baseAddress!, byteCount: row)
            }
        }
        return whole
    }

    private func decoded(_ file: MappedFile, _ offset: Int, _ block: GGMLBlock) -> Tensor {
        let bytes = UnsafeRawBufferPointer(rebasing: file.bytes[offset...])
        return computed(Shape(shape), dtype, unit: block.elements) { range in
            block.decode(bytes, elements: range)
        }
    }
}

/// Calls `body` with every index of a shape, the last axis varying fastest, and the index's position.
private func forEachIndex(of shape: [Int], _ body: (_ place: Int, _ index: [Int]) -> Void) {
    let count = shape.reduce(1, *)
    var index = [Int](repeating: 0, count: shape.count)
    for place in 0..<count {
        body(place, index)
        var axis = shape.count - 1
        while axis >= 0 {
            index[axis] += 1
            if index[axis] < shape[axis] { break }
            index[axis] = 0
            axis -= 1
        }
    }
}

/// The content of a container.
struct Contents {
    let format: CheckpointFormat
    var metadata: [String: String] = [:]
    var tensors: [StoredTensor] = []
    /// Tensors of unsupported element types: their names and types.
    var foreign: [(name: String, type: String)] = []
    /// Decisions that a user should know of.
    var notes: [String] = []
}
