// The NVIDIA backend: its operations, listed below with their files, and the memory that they share.
//
//     Weights            place, require, read           Weights/
//     Linear layers      linear, linearAdd, quantize    Operations/Linear*, Quantize*
//                        f32 linear layers              Operations/FullPrecisionLinear.swift
//     Norms              layerNorm, rmsNorm, …Rope      Operations/Normalization.swift
//     Element by element gatedAdd, geluGate, combine    Operations/Elementwise.swift
//     Tokens, latents    patchify, concatenate, …       Operations/Layout.swift
//     Attention          dense, relative, SLA, SageSLA  Operations/*Attention.swift, BlockMap.swift
//     Autoencoder        convolution, channelNorm, …    Operations/Convolution*, Frames.swift
//     Between GPUs       exchange, gather, halo         Operations/Collectives.swift
//     Training           gradients, tangents, adamW     Operations/Gradients/

import Ground
public import Tensors

/// One NVIDIA GPU as a backend. Must stay on the thread that made it.
public final class CUDABackend: Backend {
    /// How the device is used.
    public struct Options: Sendable {
        /// Folders to search first for NVIDIA's libraries, separated by colons.
        public var libraries: String?
        /// Path of a pack of compiled kernels; nil for the one beside the binary, if there is one.
        public var pack: String?
        /// Waits for every kernel, so that a failure names the kernel that caused it. Slow.
        public var waitsForEachKernel = false
        /// Uses the kernels on mma.sync, which run on every card, instead of the card's own. For testing them.
        public var usesGenericKernels = false
        /// Fills new memory with NaN, so that tests notice what a kernel forgets to write.
        public var poisonsMemory = false
        /// The most device memory to use, in bytes; nil for all there is.
        public var memoryLimit: Int?
        /// The most bytes of grouped weights that stay on the device; the others are copied from host memory for each
        /// use.
        /// nil if all stay.
        public var residentWeights: Int?
        /// How bytes travel to the other GPUs of a group; where there is no peer access they go by the host's memory.
        public var route = Route.engines

        public init() {}
    }

    public let context: Context
    let uploads: Uploads
    let downloads: Downloads
    let weights: WeightStreaming
    /// nil for a GPU that is in no group.
    let exchanges: Exchanges?
    private let poisonsMemory: Bool

    public let membership: Membership

    public var name: String { context.properties.name }

    public func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool {
        switch arithmetic {
        case .exact, .bf16: true
        case .sage(let architecture):
            Sage.family(of: architecture).includes(context.kernelArchitecture)
        }
    }

    public func supports(_ format: LinearFormat) -> Bool {
        format != .fp8Rows || KernelFamily.fp8.includes(context.kernelArchitecture)
    }

    /// Opens GPU `ordinal` and compiles the kernels that are neither in the pack nor in the cache.
    /// - Parameters:
    ///   - membership: its place in a group of GPUs.
    ///   - group: the ordinals of the group's GPUs, in its order.
    ///   - progress: told of every kernel file that becomes ready, from any thread.
    /// - Throws: ``CUDAUnavailable``, ``KernelError`` or ``CUDAError``.
    public init(
        ordinal: Int = 0, _ options: Options = Options(), membership: Membership = .alone,
        group: [Int] = [], progress: @Sendable (KernelSource.Built) -> Void = { _ in }
    ) throws {
        let driver = try Driver(libraries: options.libraries)
        let device = try Device(driver, ordinal: ordinal)
        let kernels = try KernelSource(pack: options.pack, libraries: options.libraries)
        context = try Context(
            device, memoryLimit: options.memoryLimit, peers: group.filter { $0 != ordinal },
            kernels: kernels)
        self.membership = membership
        exchanges =
            membership.isAlone
            ? nil : try Exchanges(context, ordinals: group, route: options.route)
        context.waitsForEachKernel = options.waitsForEachKernel
        if options.usesGenericKernels { context.useGenericKernels() }
        poisonsMemory = options.poisonsMemory
        uploads = try Uploads(context)
        downloads = Downloads(context)
        weights = try WeightStreaming(
            context, uploads, residentBytes: options.residentWeights, membership,
            readable: exchanges?.readable ?? [])
        try context.kernels.prepare(progress: progress)
        context.tuning = context.kernels.storedTuning
    }

    public func synchronize() throws { try context.synchronize() }

    public var memory: MemoryUse {
        MemoryUse(current: context.memory.current, peak: context.memory.peak)
    }

    public func resetPeak() { context.memory.resetPeak() }

    public func limitResidentWeights(to byteCount: Int?) { weights.residentLimit = byteCount }

    public func releaseUnusedMemory() {
        weights.releaseScratch()
        uploads.release()
        // What was freed is still in use until the work that is queued has ended.
        context.stream.drain()
        context.memory.trim()
    }

    public func run(_ operation: Operation) -> [Tensor] {
        switch operation {
        case .linear(let o): [linear(o)]
        case .linearAdd(let o): [linearAdd(o)]
        case .quantize(let o): [quantize(o)]
        case .layerNorm(let o): [layerNorm(o)]
        case .modulatedLayerNorm(let o): [modulatedLayerNorm(o)]
        case .rmsNorm(let o): [rmsNorm(o)]
        case .rmsNormRope(let o): [rmsNormRope(o)]
        case .channelNorm(let o): [channelNorm(o)]
        case .gatedAdd(let o): [gatedAdd(o)]
        case .geluGate(let o): [geluGate(o)]
        case .rcmStep(let o): [rcmStep(o)]
        case .combine(let o): [combine(o)]
        case .noise(let o): [noise(o)]
        case .attention(let o): [attention(o)]
        case .relativeAttention(let o): [relativeAttention(o)]
        case .blockMap(let o): blockMap(o).tensors
        case .sparseLinearAttention(let o): [sparseLinearAttention(o)]
        case .sageOperands(let o): sageOperands(o).tensors
        case .view(let o): [o.result]
        case .concatenate(let o): [concatenate(o)]
        case .embedding(let o): [o.composed(on: self)]
        case .patchify(let o): [patchify(o)]
        case .unpatchify(let o): [unpatchify(o)]
        case .channelsLast(let o): [channelsLast(o)]
        case .channelsFirst(let o): [channelsFirst(o)]
        case .convolution(let o): [convolution(o)]
        case .interleaveTime(let o): [interleaveTime(o)]
        case .rgb8(let o): [rgb8(o)]
        case .nv12(let o): [nv12(o)]
        case .exchange(let o): [collective(o)]
        case .gather(let o): [collective(o)]
        case .halo(let o): [collective(o)]
        case .joinRows(let o): [joinRows(o)]
        case .training(let o): training(o)
        }
    }

    // MARK: Memory for operations

    /// A new uninitialised tensor.
    func tensor(_ shape: Shape, _ dtype: DType, scales: Storage? = nil) -> Tensor {
        Tensor(
            shape, dtype, storage: storage(byteCount: shape.count * dtype.byteCount),
            scales: scales)
    }

    /// New uninitialised memory for scales or partial results. Freed memory is reused in the order of the stream, so
    /// scratch memory may be released as soon as the last launch that uses it is queued.
    func storage(byteCount: Int) -> DeviceStorage {
        let buffer = context.buffer(byteCount: byteCount)
        if poisonsMemory {
            context.stream.fill(buffer.pointer, with: 0xFF, byteCount: byteCount)
        }
        return DeviceStorage(buffer, byteCount: byteCount)
    }

    /// Copies a small host array to the device. Keep the storage in a variable until the launch is queued: the memory
    /// of a temporary could be reused for the next argument.
    func upload<T: BitwiseCopyable>(_ values: [T]) -> DeviceStorage {
        let storage = storage(byteCount: values.count * MemoryLayout<T>.stride)
        // The source is pageable memory, so the call returns only when the values have been read.
        values.withUnsafeBytes {
            context.stream.copy($0.baseAddress!, to: storage.location, byteCount: $0.count)
        }
        return storage
    }

    /// The C++ type of a dtype's elements, as it appears in the names of kernels.
    static func typeName(_ dtype: DType) -> String {
        switch dtype {
        case .f64: "double"
        case .f32: "float"
        case .f16: "f16"
        case .bf16: "bf16"
        case .f8e4m3: "e4m3"
        case .f8e5m2: "e5m2"
        case .i64: "i64"
        case .i32: "i32"
        case .i16: "i16"
        case .i8: "i8"
        case .u8, .bool: "u8"
        }
    }
}
