// Names of devices, and the messages if there is no GPU or too little memory.

import CPU
import CUDA
import Ground
import Synchronization
import Tensors
import Testing

@testable import Devices

@Suite struct DeviceChoiceTests {
    @Test(
        arguments: [
            ("auto", .automatic, "auto"), ("cpu", .cpu, "cpu"),
            ("cuda", .cuda(ordinal: 0), "cuda:0"), ("cuda:12", .cuda(ordinal: 12), "cuda:12"),
        ] as [(String, DeviceChoice, String)])
    func namesAreRead(name: String, choice: DeviceChoice, written: String) {
        #expect(DeviceChoice(name) == choice)
        #expect(choice.description == written && DeviceChoice(written) == choice)
    }

    @Test(arguments: [
        "", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1 ", "cuda:99999999999999999999",
    ])
    func otherNamesAreRefused(name: String) {
        #expect(DeviceChoice(name) == nil)
    }
}

@Suite struct OpenDeviceTests {
    @Test func theCPUIsOpenedWithItsThreads() throws {
        var options = DeviceOptions()
        options.threads = 1
        let backend = try DeviceChoice.cpu.open(options)
        #expect(backend is CPUBackend && backend.name.contains("1 thread"))
        #expect(backend.sageArchitecture == .sm90)
        try backend.checkFreeMemory(.max)
    }

    @Test func withoutAGPUAutomaticIsTheCPUAndNamingOneFails() throws {
        do {
            _ = try Driver()
        } catch let reason where reason.meansNoGPU {
            let notes = Mutex<[String]>([])
            let backend = try DeviceChoice.automatic.open { note in
                notes.withLock { $0.append("\(note)") }
            }
            #expect(backend is CPUBackend && !DeviceChoice.automatic.isGPU)
            #expect(notes.withLock { $0 }.isEmpty)
            #expect(throws: CUDAUnavailable.self) { try DeviceChoice.cuda(ordinal: 0).open() }
        } catch {
            // A driver without a usable card: a run on the CPU says why.
            #expect(!error.meansNoGPU)
        }
    }

    @Test func onlyAMissingDriverOrCardIsSilent() {
        #expect(CUDAUnavailable.noDevice.meansNoGPU)
        let driver = CUDAUnavailable.missingLibrary(name: "libcuda.so.1", searched: [], reason: "")
        let compiler = CUDAUnavailable.missingLibrary(name: "libnvrtc.so", searched: [], reason: "")
        #expect(driver.meansNoGPU && !compiler.meansNoGPU)
        let old = CUDAUnavailable.driverTooOld(found: "470", needed: "525", purpose: "CUDA 12")
        #expect(!old.meansNoGPU)
        #expect("\(DeviceNote.fallsBack(old))".hasSuffix("; the CPU is used"))
        #expect(
            "\(DeviceNote.kernels(file: "x.cu", seconds: 2))"
                == "kernels of x.cu ready after 2.00 s")
    }

    @Test func aShortageSaysWhoHoldsTheMemory() {
        let shortage = MemoryShortage(needed: 30 << 30, free: 4 << 30, total: 80 << 30)
        #expect(
            "\(shortage)"
                == "30.00 GiB of device memory are needed, only 4.00 GiB of 80.00 GiB are "
                + "free: other programs hold 76.00 GiB (nvidia-smi lists them)")
    }

    @Test("a run on the CPU is refused where its memory cannot grow, and noted where it can")
    func hostMemory() throws {
        let machine = HostMemory(available: 2 << 30, most: 8 << 30)
        #expect(try machine.check(computed: 1 << 30, whole: 2 << 30) == nil)
        let note = try machine.check(computed: 1 << 30, whole: 3 << 30)
        #expect(note?.contains("takes about 3.00 GiB of memory, 2.00 GiB are free") == true)
        // Weights are mapped and need not all be there; what is computed must.
        #expect(try machine.check(computed: 1 << 30, whole: 30 << 30) != nil)
        #expect(throws: HostMemoryShortage(needed: 9 << 30, most: 8 << 30, isOfProcess: false)) {
            try machine.check(computed: 9 << 30, whole: 9 << 30)
        }
        let limited = HostMemory(available: 8 << 30, most: 8 << 30, addresses: 1 << 30)
        #expect(try limited.check(computed: 1, whole: 1 << 29) == nil)
        #expect(throws: HostMemoryShortage.self) { try limited.check(computed: 1, whole: 1 << 30) }
    }
}

@Suite struct DeviceGroupTests {
    @Test(
        arguments: [
            ("0,1", [.gpu(0), .gpu(1)], "0,1"), ("cuda:1,3", [.gpu(1), .gpu(3)], "1,3"),
            ("cpu,cpu", [.cpu, .cpu], "cpu,cpu"), ("cuda:all", [], "cuda:all"),
            ("GPU-5a1b,GPU-77c0", [.uuid("GPU-5a1b"), .uuid("GPU-77c0")], "GPU-5a1b,GPU-77c0"),
        ] as [(String, [DeviceGroup.Member], String)])
    func namesAreRead(name: String, members: [DeviceGroup.Member], written: String) {
        #expect(DeviceGroup(name)?.members == members)
        #expect(DeviceGroup(name)?.description == written)
    }

    @Test(arguments: [
        "", ",", "0,", "0,x", "0 ,1", "-1", "cpu;cpu", "GPU-",
        Array(repeating: "cpu", count: 65).joined(separator: ","),
    ])
    func otherNamesAreRefused(name: String) { #expect(DeviceGroup(name) == nil) }

    @Test func membersAreOfOneKindAndHaveTheirPlaces() throws {
        let mixed = try #require(DeviceGroup("cpu,0"))
        #expect(throws: DeviceGroupError.mixed) { try mixed.openers() }
        let cpus = try #require(DeviceGroup("cpu,cpu,cpu"))
        let opened = try cpus.openers().map { try $0() }
        #expect(opened.map(\.membership.index) == [0, 1, 2])
        #expect(opened.allSatisfy { $0.membership.meeting === opened[0].membership.meeting })
        #expect(!cpus.sharesWeights && cpus.leastFree == nil)
    }

    @Test func whyThereIsNoGroupIsOneLine() {
        let errors: [DeviceGroupError] = [
            .mixed, .twice("GPU 0"), .noGPU(uuid: "GPU-1", found: []),
            .noGPU(uuid: "GPU-1", found: ["GPU-2", "GPU-3"]),
            .unlike("GPU 0 (H100, 9.0)", "GPU 1 (A100, 8.0)"),
        ]
        for error in errors { #expect(!"\(error)".contains("\n") && !"\(error)".isEmpty) }
        #expect("\(errors[1])" == "GPU 0 is named twice")
        #expect("\(errors[4])".contains("one compute capability"))
    }
}
