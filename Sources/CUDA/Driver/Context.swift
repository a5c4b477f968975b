// What an operation needs from a device: a stream, memory, kernels.

internal import CDrivers

/// A device in use: its main stream, its memory, its kernels. Must stay on one thread.
public final class Context {
    public let device: Device
    public let stream: Stream
    /// The stream for launches: `stream`, except during `launching(in:_:)`.
    private var launches: Stream
    public let memory: DeviceMemory
    public let kernels: KernelLibrary
    /// Waits for every kernel, so that a failure names the kernel that caused it. Slow; for debugging.
    public var waitsForEachKernel = false
    /// The architecture that kernels are chosen for: the device's own, or at most Ada after `useGenericKernels`.
    public private(set) var kernelArchitecture: Architecture
    /// What `kernels tune` measured of this card.
    public internal(set) var tuning = Tuning()
    let arguments = LaunchArguments()

    /// - Parameters:
    ///   - memoryLimit: the most bytes to take from the device; nil for all.
    ///   - peers: GPUs that may write to this one's memory, where they can.
    ///   - kernels: where compiled kernels come from.
    public init(
        _ device: Device, memoryLimit: Int? = nil, peers: [Int] = [], kernels: KernelSource
    ) throws(CUDAError) {
        self.device = device
        kernelArchitecture = device.properties.architecture
        stream = try Stream(device)
        launches = stream
        memory = DeviceMemory(device, limit: memoryLimit, peers: device.peers(of: peers))
        self.kernels = KernelLibrary(device, kernels)
    }

    public var properties: DeviceProperties { device.properties }

    /// From now on chooses kernels on mma.sync, which run on every card: those for Ada, or for an older card.
    func useGenericKernels() { kernelArchitecture = min(kernelArchitecture, .ada) }

    /// A buffer of device memory; see ``DeviceMemory/buffer(byteCount:)``.
    public func buffer(byteCount: Int) -> DeviceBuffer { memory.buffer(byteCount: byteCount) }

    /// A kernel, whose argument types follow from the variable that it is assigned to. Its unit is compiled or loaded
    /// when the first kernel of the unit is needed. `name` must be exactly one of the unit's names.
    public func kernel<each Argument: BitwiseCopyable>(
        _ name: String, of unit: KernelUnit
    ) -> Kernel<repeat each Argument> {
        Kernel(name: name, function: kernels.function(name, of: unit), context: self)
    }

    /// Waits until the main stream is empty.
    /// - Throws: the first failure since the last call: of an operation, a running kernel, an allocation or a
    ///   compilation.
    ///   It names the call, and the last launched kernel if the device cannot tell which one failed (see
    ///   ``waitsForEachKernel``).
    public func synchronize() throws(CUDAError) {
        if device.failure == nil { stream.drain() }
        if let failure = device.takeFailure() { throw failure }
    }

    /// Runs `body`, whose kernels are launched in another stream. It must not allocate device memory, because memory is
    /// reused in the order of the main stream.
    func launching(in stream: Stream, _ body: () -> Void) {
        let before = launches
        launches = stream
        body()
        launches = before
    }

    func launch(_ function: Function, _ shape: LaunchShape, _ arguments: LaunchArguments) {
        function.allowShared(shape.sharedBytes)
        guard device.failure == nil else { return }
        var attributes = (CUlaunchAttribute(), CUlaunchAttribute())
        var count: UInt32 = 0
        if shape.cluster.count > 1 {
            attributes.0.id = Int32(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            attributes.0.x = UInt32(shape.cluster.x)
            attributes.0.y = UInt32(shape.cluster.y)
            attributes.0.z = UInt32(shape.cluster.z)
            count = 1
        }
        if shape.overlapsPrevious && properties.architecture >= .hopper {
            var overlap = CUlaunchAttribute()
            overlap.id = Int32(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
            overlap.x = 1
            if count == 0 { attributes.0 = overlap } else { attributes.1 = overlap }
            count += 1
        }
        device.lastKernel = function.name
        withUnsafeMutablePointer(to: &attributes) { attributes in
            attributes.withMemoryRebound(to: CUlaunchAttribute.self, capacity: 2) { list in
                var config = CUlaunchConfig(
                    gridDimX: UInt32(shape.grid.x), gridDimY: UInt32(shape.grid.y),
                    gridDimZ: UInt32(shape.grid.z), blockDimX: UInt32(shape.block.x),
                    blockDimY: UInt32(shape.block.y), blockDimZ: UInt32(shape.block.z),
                    sharedMemBytes: UInt32(shape.sharedBytes), hStream: launches.handle,
                    attrs: list, numAttrs: count)
                device.check(
                    device.cuda.cuLaunchKernelEx(
                        &config, function.handle, arguments.addresses, nil),
                    "launch of \(function.name), grid \(shape.grid.x) x \(shape.grid.y) x "
                        + "\(shape.grid.z), block \(shape.block.count), "
                        + "\(shape.sharedBytes) bytes of shared memory")
            }
        }
        if waitsForEachKernel { launches.drain() }
    }
}
