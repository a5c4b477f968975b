// What needs a GPU: placing, reading, streaming, errors. Skipped, loudly, on machines without one.

import Glibc
import Tensors
import Testing

@testable import CUDA

/// Whether this machine has a usable GPU. Says so once, so that skipped tests do not pass for run ones.
private let hasDevice: Bool = {
    do {
        _ = try Device(Driver())
        return true
    } catch {
        print("*** SKIPPED: all tests on a GPU (\(error)) ***")
        return false
    }
}()

@Suite(.enabled(if: hasDevice, "no usable GPU: nothing below is tested"), .serialized)
struct DeviceTests {
    private func values(_ count: Int, seed: UInt64 = 1) -> [Float] {
        var state = seed
        return (0..<count).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Float(Int64(bitPattern: state) >> 40) * 0x1p-22
        }
    }

    @Test func tensorsSurviveTheWayThereAndBack() throws {
        let backend = try CUDABackend()
        // Below one piece of the staging ring, and over several, with a ragged end.
        for count in [1, 1000, 20_000_003] {
            let host = Tensor(values(count), [count])
            let back = backend.read(backend.place(host, as: .f32))
            #expect(memcmp(host.hostAddress, back.hostAddress, host.byteCount) == 0)
        }
        try backend.synchronize()
    }

    @Test func conversionsEqualTheHosts() throws {
        let backend = try CUDABackend()
        let source = Tensor(values(70_001), [70_001])
        for from in [DType.f64, .f32, .f16, .bf16, .f8e4m3] {
            let host = source.converted(to: from)
            for to in [DType.f32, .bf16] where to != from {
                let expected = host.converted(to: to)
                let actual = backend.read(backend.place(host, as: to))
                #expect(
                    memcmp(expected.hostAddress, actual.hostAddress, expected.byteCount) == 0,
                    "\(from) to \(to)")
            }
        }
        try backend.synchronize()
    }

    @Test func streamedWeightsAreTheWeights() throws {
        var options = CUDABackend.Options()
        // One of the eight matrices stays; the others take turns in two slots.
        options.residentWeights = 3 << 20
        let backend = try CUDABackend(options)
        let set = WeightSet()
        let groups = (0..<4).map { WeightGroup("layer \($0)", of: set) }
        let hosts = (0..<8).map { Tensor(values(600 * 1000, seed: UInt64($0)), [600, 1000]) }
        let placed = hosts.enumerated().map {
            backend.place($1, as: .f32, in: groups[$0 / 2])
        }
        for round in 0..<3 {
            for index in groups.indices {
                backend.require(groups[index])
                for matrix in [2 * index, 2 * index + 1] {
                    let back = backend.read(placed[matrix])
                    #expect(
                        memcmp(back.hostAddress, hosts[matrix].hostAddress, back.byteCount) == 0,
                        "matrix \(matrix) in round \(round)")
                }
            }
        }
        try backend.synchronize()
    }

    /// The same elements as a mapped file would show them.
    private func mapped(_ host: Tensor) -> Tensor {
        let bytes = UnsafeRawBufferPointer(start: host.hostAddress, count: host.byteCount)
        return Tensor(
            host.shape, host.dtype,
            storage: HostStorage(borrowing: bytes, owner: host.storage))
    }

    @Test(arguments: [nil, 0, 10 << 20])
    func deferredWeightsAreTheWeights(residentBytes: Int?) throws {
        var options = CUDABackend.Options()
        options.residentWeights = residentBytes
        let backend = try CUDABackend(options)
        let set = WeightSet(isDeferred: true)
        let groups = (0..<3).map { WeightGroup("layer \($0)", of: set) }
        let text = WeightGroup("text", of: set, isTransient: true)
        // Over one piece of the staging ring, with a ragged end; and one that comes at once.
        let sources = (0..<3).map { Tensor(values(4200 * 1032, seed: UInt64($0)), [4200, 1032]) }
        let small = Tensor(values(1000), [1000])
        let before = backend.memory.current
        var placed: [(WeightGroup, [Tensor])] = []
        for (group, source) in zip(groups, sources) {
            let dense = mapped(source)
            let half = mapped(source.converted(to: .bf16))
            let codes = backend.place(dense, quantizedTo: .int8Blocks, in: group)
            let halfCodes = backend.place(half, quantizedTo: .int8Blocks, in: group)
            guard case .int8Blocks(_, let scale) = codes,
                case .int8Blocks(_, let halfScale) = halfCodes
            else { throw CancellationError() }
            placed.append(
                (
                    group,
                    [
                        backend.place(dense, as: .f32, in: group),
                        backend.place(dense, as: .bf16, in: group), codes.matrix, scale,
                        halfCodes.matrix, halfScale,
                    ]
                ))
        }
        let visitor = backend.place(mapped(sources[0]), as: .f32, in: text)
        #expect(
            backend.read(backend.place(small, as: .f32, in: groups[0])).floats() == small.floats())
        // Scales only.
        #expect(backend.memory.current - before < 1 << 20)

        var expected: [[Tensor]] = []
        for source in sources {
            let codes = backend.place(source, quantizedTo: .int8Blocks, in: nil)
            guard case .int8Blocks(_, let scale) = codes else { throw CancellationError() }
            expected.append(
                [source, source.converted(to: .bf16), codes.matrix, scale, codes.matrix, scale]
                    .map(backend.read))
        }
        for _ in 0..<2 {
            backend.require(text)
            #expect(backend.equalBits(visitor, backend.place(sources[0], as: .f32)))
            for (index, (group, tensors)) in placed.enumerated() {
                backend.require(group)
                for (tensor, right) in zip(tensors, expected[index]) {
                    let back = backend.read(tensor)
                    #expect(memcmp(back.hostAddress, right.hostAddress, right.byteCount) == 0)
                }
            }
        }
        try backend.synchronize()
    }

    @Test func twoExpertsTakeTurnsInOneMemory() throws {
        let backend = try CUDABackend()
        let host = Tensor(values(600 * 1000), [600, 1000])
        func expert() -> (groups: [WeightGroup], weights: [Tensor]) {
            let set = WeightSet(isDeferred: true)
            let groups = (0..<4).map { WeightGroup("\($0)", of: set) }
            return (groups, groups.map { backend.place(mapped(host), as: .f32, in: $0) })
        }
        var experts = [expert(), expert()]
        let before = backend.memory.current
        for group in experts[0].groups { backend.require(group) }
        let one = backend.memory.current
        #expect(one - before == 4 * Arena.rounded(host.byteCount))
        try backend.synchronize()
        experts.removeFirst()
        #expect(backend.memory.current == before)
        backend.resetPeak()
        for (group, weight) in zip(experts[0].groups, experts[0].weights) {
            backend.require(group)
            #expect(backend.read(weight).floats() == host.floats())
        }
        #expect(backend.memory.peak == one)
        try backend.synchronize()
    }

    @Test func deferredWeightsThatDoNotFitAreAnErrorAndNotATrap() throws {
        var options = CUDABackend.Options()
        options.memoryLimit = 64 << 20
        let backend = try CUDABackend(options)
        let host = Tensor(values(4096 * 1024), [4096, 1024])
        let set = WeightSet(isDeferred: true)
        let groups = (0..<8).map { WeightGroup("\($0)", of: set) }
        let weights = groups.map { backend.place(mapped(host), as: .f32, in: $0) }
        for (group, weight) in zip(groups, weights) {
            backend.require(group)
            _ = weight.pointer
        }
        #expect(throws: CUDAError.self) { try backend.synchronize() }
    }

    @Test func freedWeightsMakeRoomForOthers() throws {
        var options = CUDABackend.Options()
        options.residentWeights = 3 << 20
        let backend = try CUDABackend(options)
        for seed in 0..<3 {
            let host = Tensor(values(600 * 1000, seed: UInt64(seed)), [600, 1000])
            // Resident each time: no `require` is needed before it is used.
            let placed = backend.place(host, as: .f32, in: WeightGroup("alone"))
            #expect(backend.read(placed).floats() == host.floats())
        }
        try backend.synchronize()
    }

    @Test func tooLargeRequestsAreErrorsThatSayHowMuch() throws {
        var options = CUDABackend.Options()
        options.memoryLimit = 256 << 20
        let backend = try CUDABackend(options)
        let tensor = backend.tensor([512 << 20], .u8)
        #expect(throws: CUDAError.self) { try backend.synchronize() }
        _ = tensor
        // The device works on.
        let host = Tensor([1, 2, 3] as [Float], [3])
        #expect(backend.read(backend.place(host, as: .f32)).floats() == [1, 2, 3])
        try backend.synchronize()
    }

    @Test func equalBitsSeesOneDifferentElement() throws {
        let backend = try CUDABackend()
        var numbers = values(100_000)
        let a = backend.place(Tensor(numbers, [100_000]), as: .f32)
        let b = backend.place(Tensor(numbers, [100_000]), as: .f32)
        numbers[77_777] += 1
        let c = backend.place(Tensor(numbers, [100_000]), as: .f32)
        #expect(backend.equalBits(a, b))
        #expect(!backend.equalBits(a, c))
        try backend.synchronize()
    }
}
