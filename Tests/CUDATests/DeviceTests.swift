// What needs a GPU: placing, reading, streaming, errors. Skipped, loudly, on machines without one.

import Tensors
import Testing

@testable import CUDA

#if canImport(Glibc)
    import Glibc
#endif

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
        let groups = (0..<4).map { WeightGroup("layer \($0)") }
        let hosts = (0..<8).map { Tensor(values(600 * 1000, seed: UInt64($0)), [600, 1000]) }
        let placed = hosts.enumerated().map {
            backend.place($1, as: .f32, in: groups[$0 / 2])
        }
        for round in 0..<3 {
            for index in groups.indices {
                // The wrap-around is announced in every other round only.
                let next = index + 1 < 4 ? groups[index + 1] : round % 2 == 0 ? groups[0] : nil
                backend.require(groups[index], next: next)
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
