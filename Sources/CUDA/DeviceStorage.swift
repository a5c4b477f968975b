// Tensors in device memory.

import Ground
public import Tensors

/// Bytes on the GPU. The weights of a streamed group move, so get the address for each launch and do not keep it.
public final class DeviceStorage: Storage {
    /// nil for weights that leave the device after use, and for those that have not been copied yet.
    private var buffer: DeviceBuffer?
    /// Where the bytes are now; `.null` while a weight is not on the device.
    var location: DevicePointer
    /// Kept alive as long as this storage; used to count its bytes.
    var token: AnyObject?
    /// What must have come before the bytes are read; see `Collectives.swift`.
    var arrival: Arrival?

    /// Bytes that stay in `buffer`, which may be larger.
    init(_ buffer: DeviceBuffer, byteCount: Int) {
        self.buffer = buffer
        location = buffer.pointer
        super.init(byteCount: byteCount)
    }

    /// Bytes that are not on the device yet.
    init(away byteCount: Int) {
        buffer = nil
        location = .null
        super.init(byteCount: byteCount)
    }

    deinit {
        // The memory is not given out again before everything has come.
        arrival?.wait()
    }

    /// From here on the main stream may read the bytes.
    func arrive() {
        guard let arrival else { return }
        self.arrival = nil
        arrival.wait()
    }

    var isAway: Bool { buffer == nil && location == .null }

    /// Gives the bytes a place for good.
    func settle(in buffer: DeviceBuffer) {
        self.buffer = buffer
        location = buffer.pointer
    }
}

extension Tensor {
    /// The address of the first element, for one launch.
    var pointer: DevicePointer {
        guard let storage = storage as? DeviceStorage else {
            programmingError("\(shape) \(dtype) is in host memory: place it on the device first")
        }
        ensure(
            !storage.isAway,
            "\(shape) \(dtype) is a weight that is not on the device: require its group")
        storage.arrive()
        return storage.location + byteOffset
    }

    /// The address of the scales of 8-bit activations.
    var scalesPointer: DevicePointer {
        guard let storage = scales as? DeviceStorage else {
            programmingError("\(shape) \(dtype) has no scales on the device")
        }
        storage.arrive()
        return storage.location
    }

    /// Whether every row, with the tensor seen as a matrix, starts at a multiple of 16 bytes.
    var hasAlignedRows: Bool { byteOffset % 16 == 0 && shape.columns * dtype.byteCount % 16 == 0 }
}
