// The compile room: keys, files, logs, and every kernel for every architecture.

import Glibc
import Ground
import SystemPackage
import Testing

@testable import CUDA

@Suite struct ArchitectureTests {
    @Test func namesAreReadAndWritten() {
        #expect(Architecture("sm_90a") == .hopper)
        #expect(Architecture("sm_90") == .hopper)
        #expect(Architecture("89") == .ada)
        #expect(Architecture("120") == .blackwell)
        #expect(Architecture("sm_9") == nil)
        #expect(Architecture("hopper") == nil)
        #expect("\(Architecture.hopper)" == "sm_90a")
        #expect("\(Architecture.ada)" == "sm_89")
        #expect("\(Architecture.blackwell)" == "sm_120a")
        #expect(Architecture.blackwell.capability == "12.0")
    }

    @Test func familiesIncludeTheirArchitectures() {
        #expect(KernelFamily.any.includes(.ampere))
        #expect(!KernelFamily.fp8.includes(.ampere))
        #expect(KernelFamily.fp8.includes(.blackwell))
        #expect(KernelFamily.hopper.includes(.hopper))
        #expect(!KernelFamily.hopper.includes(.blackwell))
    }
}

@Suite struct KernelKeyTests {
    private let unit = KernelUnit("elementwise.cu", kernels: ["rcm_step"])

    @Test func keysDependOnEverythingThatDecidesTheCode() {
        let key = KernelText.key(of: unit, for: .hopper)
        #expect(key == KernelText.key(of: unit, for: .hopper))
        #expect(key != KernelText.key(of: unit, for: .ampere))
        let defined = KernelUnit("elementwise.cu", definitions: ["N=2"], kernels: ["rcm_step"])
        #expect(key != KernelText.key(of: defined, for: .hopper))
        let other = KernelUnit("elementwise.cu", kernels: ["combine<float>"])
        #expect(key != KernelText.key(of: other, for: .hopper))
    }

    @Test func includesAreFollowed() {
        #expect(KernelText.includes(of: "normalization.cu").contains("numeric.cuh"))
        #expect(KernelText.includes(of: "ptx.cuh").contains("ptx_sm90.cuh"))
        #expect(
            KernelText.quotedIncludes(
                in: "#include \"a.cuh\"\n#pragma once\n  #include \"b.cuh\" // x\n")
                == ["a.cuh", "b.cuh"])
    }

    @Test func everyIncludeIsEmbedded() {
        for name in KernelText.names {
            for include in KernelText.includes(of: name) {
                #expect(KernelText[include] != nil, "\(name) includes \(include)")
            }
        }
    }
}

@Suite struct KernelCatalogTests {
    @Test func everyKernelFileIsEmbeddedAndInTheCatalogue() throws {
        let folder = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        let files = try #require(
            opendir("/\(folder)/Sources/CUDASources/Kernels"), "the kernels' folder")
        defer { closedir(files) }
        var names: Set<String> = []
        while let entry = readdir(files) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name.hasSuffix(".cu") || name.hasSuffix(".cuh") { names.insert(name) }
        }
        #expect(Set(KernelText.names) == names)
        #expect(
            Set(KernelCatalog.units.map(\.file)) == names.filter { $0.hasSuffix(".cu") })
    }

    @Test func kernelsAreNamedOnce() {
        for unit in KernelCatalog.units {
            #expect(Set(unit.kernels).count == unit.kernels.count, "\(unit.file)")
        }
    }
}

@Suite struct CompiledUnitTests {
    private let unit = CompiledUnit(
        kernels: [
            .init(
                name: "gelu<bf16, 8>", lowered: "_Z4gelu", registers: 32, localBytes: 16,
                sharedBytes: 128),
            .init(name: "spilled", lowered: "_Z7spilled", localBytes: 24, spillBytes: 48),
        ], cubin: [1, 2, 3, 10, 13], compiler: CompilerVersion(major: 13, minor: 0))

    private func read(_ bytes: some Collection<UInt8>) -> CompiledUnit? {
        Array(bytes).withUnsafeBytes { CompiledUnit(serialized: $0) }
    }

    @Test func unitsSurviveFiles() {
        #expect(read(unit.serialized()) == unit)
        #expect(unit.spilling.map(\.name) == ["spilled"])
    }

    @Test func damagedUnitsAreRefused() {
        let bytes = unit.serialized()
        for count in bytes.indices {
            #expect(read(bytes.prefix(count)) == nil)
            var changed = bytes
            changed[count] ^= 1
            #expect(read(changed) != unit)
        }
    }

    @Test func packsSurviveFilesAndRefuseDamage() {
        let bytes = KernelPack.serialized([("b", unit), ("a", unit)])
        func parse(_ bytes: [UInt8]) -> [String: Range<Int>]? {
            bytes.withUnsafeBytes { KernelPack.parse($0) }
        }
        let entries = parse(bytes)
        #expect(entries?.keys.sorted() == ["a", "b"])
        #expect(entries?["b"].flatMap { read(bytes[$0]) } == unit)
        #expect(parse(Array(bytes.dropLast())) == nil)
        #expect(parse(Array("something else".utf8)) == nil)
    }

    @Test func cachesReturnWhatTheyKeep() throws {
        var template = Array("/tmp/kernels.XXXXXX".utf8CString)
        let folder = String(cString: try #require(mkdtemp(&template)))
        let cache = KernelCache(folder: "\(folder)/a/b")
        #expect(cache.load("key") == nil)
        cache.store(unit, as: "key")
        #expect(cache.load("key") == unit)
        #expect(cache.contents.count == 1)
        var damaged = unit.serialized()
        damaged[damaged.count - 1] ^= 1
        try PendingFile.write(
            damaged, to: FilePath(cache.path(of: "key")), overwrite: true, durable: false)
        #expect(cache.load("key") == nil)
        unlink(cache.path(of: "key"))
        rmdir("\(folder)/a/b")
        rmdir("\(folder)/a")
        rmdir(folder)
    }

    @Test func logsOfTheAssemblerAreRead() {
        let log = """
            ptxas info    : 24 bytes gmem
            ptxas info    : Compiling entry function '_Z3fooI4bf16EvPT_i' for 'sm_90a'
            ptxas info    : Function properties for _Z3fooI4bf16EvPT_i
            ptxas         .     160 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
            ptxas info    : Used 28 registers, used 1 barriers, 25600 bytes smem, 404 bytes cmem[0]
            """
        #expect(
            ResourceUsage.parse(log)
                == [
                    "_Z3fooI4bf16EvPT_i": .init(
                        registers: 28, stack: 160, spills: 20, shared: 25600)
                ])
    }
}
