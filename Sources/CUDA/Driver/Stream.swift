// Streams and events, which order the device's work.

internal import CDrivers

/// A queue of the device. Work in one stream runs in order.
public final class Stream {
    let device: Device
    let handle: CUstream

    public init(_ device: Device) throws(CUDAError) {
        var handle: CUstream?
        let result = device.cuda.cuStreamCreateWithPriority(
            &handle, UInt32(CU_STREAM_NON_BLOCKING), 0)
        guard result == 0 else { throw device.cuda.error(result, "cuStreamCreate") }
        self.device = device
        self.handle = handle!
    }

    deinit { _ = device.cuda.cuStreamDestroy(handle) }

    /// Makes everything that is queued from now on wait for `event`.
    public func wait(for event: Event) {
        device.check(device.cuda.cuStreamWaitEvent(handle, event.handle, 0), "cuStreamWaitEvent")
    }

    /// Blocks the calling thread until the stream is empty.
    func drain() {
        device.check(
            device.cuda.cuStreamSynchronize(handle),
            "cuStreamSynchronize (last kernel: \(device.lastKernel ?? "none"))")
    }

    // Copies and fills. Copies from or to pageable host memory block the caller.

    /// Copies from host to device. The source must stay valid until the stream has passed the copy.
    public func copy(_ source: UnsafeRawPointer, to destination: DevicePointer, byteCount: Int) {
        guard device.failure == nil, byteCount > 0 else { return }
        device.check(
            device.cuda.cuMemcpyHtoDAsync(destination.address, source, byteCount, handle),
            "cuMemcpyHtoDAsync \(byteCount) bytes")
    }

    /// Copies from device to host. The bytes are valid after a synchronisation.
    public func copy(_ source: DevicePointer, to target: UnsafeMutableRawPointer, byteCount: Int) {
        guard device.failure == nil, byteCount > 0 else { return }
        device.check(
            device.cuda.cuMemcpyDtoHAsync(target, source.address, byteCount, handle),
            "cuMemcpyDtoHAsync \(byteCount) bytes")
    }

    /// Copies from device to device. The ranges must not overlap.
    public func copy(_ source: DevicePointer, to destination: DevicePointer, byteCount: Int) {
        guard device.failure == nil, byteCount > 0 else { return }
        device.check(
            device.cuda.cuMemcpyDtoDAsync(
                destination.address, source.address, byteCount, handle),
            "cuMemcpyDtoDAsync \(byteCount) bytes")
    }

    /// Copies from another GPU's memory to which there is access.
    func copy(fromPeer source: DevicePointer, to destination: DevicePointer, byteCount: Int) {
        copy(
            rows: 1, width: byteCount, from: .device(source, pitch: byteCount),
            to: .device(destination, pitch: byteCount))
    }

    /// One side of a copy of runs: where the first is, and how far it is from one to the next.
    enum Runs {
        case device(DevicePointer, pitch: Int)
        /// Pinned memory.
        case host(UnsafeMutableRawPointer, pitch: Int)
    }

    /// Copies `rows` runs of `width` bytes; the memory may be another GPU's to which there is access.
    func copy(rows: Int, width: Int, from source: Runs, to target: Runs) {
        guard device.failure == nil, rows > 0, width > 0 else { return }
        var copy = CUDA_MEMCPY2D()
        (copy.WidthInBytes, copy.Height) = (width, rows)
        switch source {
        case .device(let pointer, let pitch):
            copy.srcMemoryType = Int32(CU_MEMORYTYPE_UNIFIED)
            (copy.srcDevice, copy.srcPitch) = (pointer.address, pitch)
        case .host(let pointer, let pitch):
            copy.srcMemoryType = Int32(CU_MEMORYTYPE_HOST)
            (copy.srcHost, copy.srcPitch) = (UnsafeRawPointer(pointer), pitch)
        }
        switch target {
        case .device(let pointer, let pitch):
            copy.dstMemoryType = Int32(CU_MEMORYTYPE_UNIFIED)
            (copy.dstDevice, copy.dstPitch) = (pointer.address, pitch)
        case .host(let pointer, let pitch):
            copy.dstMemoryType = Int32(CU_MEMORYTYPE_HOST)
            (copy.dstHost, copy.dstPitch) = (pointer, pitch)
        }
        device.check(
            device.cuda.cuMemcpy2DAsync(&copy, handle),
            "cuMemcpy2DAsync \(rows) x \(width) bytes")
    }

    /// Sets every byte.
    public func fill(_ destination: DevicePointer, with value: UInt8, byteCount: Int) {
        guard device.failure == nil, byteCount > 0 else { return }
        device.check(
            device.cuda.cuMemsetD8Async(destination.address, value, byteCount, handle),
            "cuMemsetD8Async \(byteCount) bytes")
    }

    /// Sets every 32-bit word.
    public func fill(_ destination: DevicePointer, withWord word: UInt32, count: Int) {
        guard device.failure == nil, count > 0 else { return }
        device.check(
            device.cuda.cuMemsetD32Async(destination.address, word, count, handle),
            "cuMemsetD32Async \(count) words")
    }
}

/// A point in a stream.
public final class Event {
    let device: Device
    let handle: CUevent

    /// - Parameter timing: whether times can be measured; an event is cheaper without.
    public init(_ device: Device, timing: Bool = false) throws(CUDAError) {
        var handle: CUevent?
        let flags = timing ? 0 : UInt32(CU_EVENT_DISABLE_TIMING)
        let result = device.cuda.cuEventCreate(&handle, flags)
        guard result == 0 else { throw device.cuda.error(result, "cuEventCreate") }
        self.device = device
        self.handle = handle!
    }

    deinit { _ = device.cuda.cuEventDestroy(handle) }

    /// Marks the current end of `stream`.
    public func record(in stream: Stream) {
        device.check(device.cuda.cuEventRecord(handle, stream.handle), "cuEventRecord")
    }

    /// Whether the stream has passed the mark.
    public var isComplete: Bool { device.cuda.cuEventQuery(handle) == 0 }

    /// Blocks the calling thread until the stream has passed the mark.
    public func synchronize() {
        device.check(device.cuda.cuEventSynchronize(handle), "cuEventSynchronize")
    }

    /// Milliseconds from this event to `end`. Both must be recorded, complete, and made with timing.
    public func milliseconds(to end: Event) -> Float {
        var time: Float = 0
        device.check(
            device.cuda.cuEventElapsedTime(&time, handle, end.handle), "cuEventElapsedTime")
        return time
    }
}
