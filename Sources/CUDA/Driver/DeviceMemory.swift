// Device memory, and pinned host memory.

internal import CDrivers
internal import Ground

/// The device memory of one context. It is reused in the order of one stream: freed memory can be allocated again at
/// once, because the new owner's work is queued after the old owner's. A buffer that another stream uses must be kept
/// until that stream has passed an event.
///
/// It grows by mapping physical memory to one range of addresses, so that it is not fragmented into segments. It never
/// shrinks.
public final class DeviceMemory {
    let device: Device
    /// The most bytes that may be taken from the device; nil for all.
    public let limit: Int?
    private var arena = Arena()
    /// The reserved range of addresses, in bytes from `base`. Devices without virtual memory management have `segments`
    /// from cuMemAlloc instead.
    private var base: CUdeviceptr = 0
    private var reserved = 0
    private var handles: [(handle: CUmemGenericAllocationHandle, start: UInt64, byteCount: Int)] =
        []
    private var segments: [CUdeviceptr] = []

    /// GPUs that may use this memory too.
    private let peers: [CUdevice]
    /// Whether they can use all of it.
    private(set) var peersHaveAccess: Bool

    /// Bytes taken from the device.
    public private(set) var mapped = 0
    /// Bytes in allocated buffers: now, and the most since ``resetPeak()``.
    public var current: Int { arena.current }
    public var peak: Int { arena.peak }
    public func resetPeak() { arena.resetPeak() }

    private static let growth = 64 << 20
    /// The largest piece; what is given back is given back in whole pieces. With peers, mapping takes so much longer that
    /// pieces grow with the whole, up to this.
    private static let largestPiece = 512 << 20
    /// Physical memory comes in multiples of this.
    private static let page = 2 << 20

    init(_ device: Device, limit: Int?, peers: [CUdevice] = []) {
        self.device = device
        self.limit = limit
        self.peers = peers
        peersHaveAccess = !peers.isEmpty
        reserveAddresses()
        if reserved == 0 { peersHaveAccess = false }
    }

    deinit {
        for (handle, start, byteCount) in handles {
            _ = device.cuda.cuMemUnmap(start, byteCount)
            _ = device.cuda.cuMemRelease(handle)
        }
        if reserved > 0 { _ = device.cuda.cuMemAddressFree(base, reserved) }
        for segment in segments { _ = device.cuda.cuMemFree(segment) }
    }

    /// A new uninitialised buffer. Its address is a multiple of 512.
    ///
    /// If there is no memory left, a failure is reported to the device and the buffer has a null address; nothing is
    /// launched after a failure.
    public func buffer(byteCount: Int) -> DeviceBuffer {
        if let start = arena.allocate(byteCount) {
            return DeviceBuffer(self, DevicePointer(address: start), byteCount)
        }
        if grow(for: byteCount), let start = arena.allocate(byteCount) {
            return DeviceBuffer(self, DevicePointer(address: start), byteCount)
        }
        return DeviceBuffer(self, .null, byteCount)
    }

    /// Takes memory for buffers that will be allocated next in a few large pieces: each piece costs half a millisecond.
    /// Never takes more than they will need, and nothing where that fails: they then tell.
    func prepare(for byteCounts: [Int]) {
        guard reserved > 0 else { return }
        var missing = byteCounts.reduce(0) { $0 + Arena.rounded($1) } - arena.freeBytes
        if let limit { missing = min(missing, limit - mapped) }
        while missing >= Self.growth {
            let size = min(missing, Self.largestPiece) / Self.growth * Self.growth
            let end = base + UInt64(mapped)
            guard device.failure == nil, map(size, at: end) else { return }
            arena.add(Arena.Block(start: end, end: end + UInt64(size)), extends: mapped > 0)
            mapped += size
            missing -= size
        }
    }

    fileprivate func deallocate(_ pointer: DevicePointer) { arena.deallocate(pointer.address) }

    /// Gives back the memory at the end of the range that no buffer has. Nothing that uses it may be queued.
    func trim() {
        while let (handle, start, byteCount) = handles.last, device.failure == nil,
            arena.freeTail(before: base + UInt64(mapped)) >= byteCount
        {
            arena.remove(Arena.Block(start: start, end: start + UInt64(byteCount)))
            _ = device.cuda.cuMemUnmap(start, byteCount)
            _ = device.cuda.cuMemRelease(handle)
            handles.removeLast()
            mapped -= byteCount
        }
    }

    // ---- growth ----

    private var property: CUmemAllocationProp {
        var property = CUmemAllocationProp()
        property.type = Int32(CU_MEM_ALLOCATION_TYPE_PINNED)
        property.location = CUmemLocation(
            type: Int32(CU_MEM_LOCATION_TYPE_DEVICE), id: device.handle)
        return property
    }

    private func reserveAddresses() {
        let cuda = device.cuda
        var supported: Int32 = 0
        _ = cuda.cuDeviceGetAttribute(
            &supported,
            Int32(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED), device.handle)
        guard supported != 0 else { return }
        // Twice the size of the memory: addresses cost nothing.
        let wanted = (device.properties.totalMemory / Self.growth + 1) * Self.growth * 2
        if cuda.cuMemAddressReserve(&base, wanted, 0, 0, 0) == 0 { reserved = wanted }
    }

    private func grow(for byteCount: Int) -> Bool {
        guard device.failure == nil else { return false }
        let need = Arena.rounded(byteCount)
        let end = base + UInt64(mapped)
        let missing = reserved > 0 ? need - arena.freeTail(before: end) : need
        let piece =
            peers.isEmpty ? Self.growth : min(max(mapped / 4, Self.growth), Self.largestPiece)
        var size = roundUp(max(missing, piece), to: Self.growth)
        // What is more than needed must leave room for kernels that are loaded later.
        if !peers.isEmpty, limit == nil, size > missing,
            device.freeMemory < size + Self.largestPiece
        {
            size = roundUp(missing, to: Self.growth)
        }
        // The last piece is as large as the limit allows.
        if let limit { size = min(size, (limit - mapped) / Self.page * Self.page) }
        if let limit, size < missing {
            device.fail(outOfMemory(byteCount, "the limit is \(limit) bytes"))
            return false
        }
        // Where a large piece is more than there is, a small one may do.
        for size in [size, roundUp(missing, to: Self.page)] where reserved > 0 && size >= missing {
            guard map(size, at: end) else { continue }
            arena.add(Arena.Block(start: end, end: end + UInt64(size)), extends: mapped > 0)
            mapped += size
            return true
        }
        // Without virtual memory management. Never used once memory has been mapped.
        var address: CUdeviceptr = 0
        if handles.isEmpty, device.cuda.cuMemAlloc(&address, size) == 0 {
            reserved = 0
            segments.append(address)
            arena.add(Arena.Block(start: address, end: address + UInt64(size)), extends: false)
            mapped += size
            return true
        }
        device.fail(outOfMemory(byteCount, "the device has \(device.freeMemory) bytes free"))
        return false
    }

    private func map(_ size: Int, at start: UInt64) -> Bool {
        let cuda = device.cuda
        var property = property
        var handle: CUmemGenericAllocationHandle = 0
        guard mapped + size <= reserved, cuda.cuMemCreate(&handle, size, &property, 0) == 0 else {
            return false
        }
        guard cuda.cuMemMap(start, size, 0, handle, 0) == 0 else {
            _ = cuda.cuMemRelease(handle)
            return false
        }
        var access = ([device.handle] + peers).map { user in
            var access = CUmemAccessDesc()
            access.location = CUmemLocation(
                type: Int32(CU_MEM_LOCATION_TYPE_DEVICE), id: user)
            access.flags = Int32(CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
            return access
        }
        let isShared =
            peersHaveAccess && cuda.cuMemSetAccess(start, size, &access, access.count) == 0
        // From then on everything goes by way of the host.
        if !isShared { peersHaveAccess = false }
        guard isShared || cuda.cuMemSetAccess(start, size, &access, 1) == 0 else {
            _ = cuda.cuMemUnmap(start, size)
            _ = cuda.cuMemRelease(handle)
            return false
        }
        handles.append((handle, start, size))
        return true
    }

    private func outOfMemory(_ byteCount: Int, _ why: String) -> CUDAError {
        CUDAError(
            code: 2, name: "CUDA_ERROR_OUT_OF_MEMORY",
            text: "\(arena.current) bytes in use, \(mapped) taken from the device; \(why)",
            call: "allocation of \(byteCount) bytes")
    }
}

/// Device memory that frees itself.
public final class DeviceBuffer {
    public let pointer: DevicePointer
    public let byteCount: Int
    private let memory: DeviceMemory

    fileprivate init(_ memory: DeviceMemory, _ pointer: DevicePointer, _ byteCount: Int) {
        self.memory = memory
        self.pointer = pointer
        self.byteCount = byteCount
    }

    deinit {
        if pointer != .null { memory.deallocate(pointer) }
    }
}

/// Page-locked host memory. The copy engine accesses it directly, so copies overlap with other work.
public final class PinnedBuffer {
    public let bytes: UnsafeMutableRawBufferPointer
    private let device: Device

    /// - Parameter isPortable: whether the copy engines of other GPUs use it too.
    public init(_ device: Device, byteCount: Int, isPortable: Bool = false) throws(CUDAError) {
        var address: UnsafeMutableRawPointer?
        let result = device.cuda.cuMemHostAlloc(
            &address, max(byteCount, 1), isPortable ? UInt32(CU_MEMHOSTALLOC_PORTABLE) : 0)
        guard result == 0 else {
            throw device.cuda.error(result, "cuMemHostAlloc \(byteCount) bytes")
        }
        bytes = UnsafeMutableRawBufferPointer(start: address, count: byteCount)
        self.device = device
    }

    deinit { _ = device.cuda.cuMemFreeHost(bytes.baseAddress!) }
}
