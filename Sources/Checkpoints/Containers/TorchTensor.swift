/// One tensor that torch.save wrote by itself: a prompt's embedding, a sample of a data set.

public import Ground
import SystemPackage
public import Tensors

/// Reads the only tensor of a PyTorch archive, which may be a view of a larger storage. → contiguous, as stored
/// - Parameters:
///   - range: where the archive lies in the file; nil: all of it.
///   - name: for messages.
/// - Throws: `.malformed`.
public func readTorchTensor(
    _ file: MappedFile, _ range: Range<Int>? = nil, called name: String
) throws(CheckpointError) -> Tensor {
    let archive = try TorchArchive(file, range)
    guard case .tensor(let index) = archive.value else {
        throw file.fail("'\(name)' holds something else than one tensor")
    }
    let pickled = archive.machine.tensors[Int(index)]
    guard pickled.dtype != nil else {
        throw file.fail("'\(name)' has the element type \(pickled.type), which is not read")
    }
    let stored = try TorchTensors(archive.machine, file).place(name, pickled, archive.storage)
    for checksum in stored.checksums {
        let bytes = UnsafeRawBufferPointer(rebasing: file.bytes[checksum.range])
        guard CRC32.checksum(bytes) == checksum.crc else {
            throw file.fail("the bytes of '\(name)' have another checksum than they should")
        }
    }
    return stored.tensor()
}

/// The only tensor of a PyTorch file.
public func readTorchTensor(_ path: String) throws(CheckpointError) -> Tensor {
    try readTorchTensor(try openFile(path), called: path)
}
