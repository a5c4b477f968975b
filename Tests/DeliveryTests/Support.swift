/// What the tests of deliveries share: nano, small requests, folders that vanish.

import CPU
import Catalog
import Families
import FoundationEssentials
import Runs
import Tensors

let projectFolder = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

func nano() throws -> ModelSet { try Catalog.modelSet(folder: projectFolder + "/Models/nano") }

/// 32x32, five frames, one step.
func tinyRequest(_ prompt: String = "a red ball", samples: Int = 1, frames: Int = 5) -> Request {
    Request(
        prompt: prompt, width: 32, height: 32, frames: frames, seed: 7, samples: samples,
        sampling: .distilled(.init(steps: 1)), arithmetic: Arithmetic(attention: .sla, topK: 0.5))
}

func engine() -> Engine {
    Engine { OpenedDevice(CPUBackend(threads: 1), sageArchitecture: .sm90) }
}

final class Folder {
    let path =
        FileManager.default.temporaryDirectory.path + "/delivery-\(UInt64.random(in: 0 ... .max))"

    init() throws { try make("") }
    deinit { try? FileManager.default.removeItem(atPath: path) }

    func make(_ name: String) throws {
        try FileManager.default.createDirectory(
            atPath: self / name, withIntermediateDirectories: true)
    }

    @discardableResult
    func write(_ name: String, _ bytes: [UInt8] = [1]) -> String {
        _ = FileManager.default.createFile(atPath: self / name, contents: Data(bytes))
        return self / name
    }

    /// All files below the folder, sorted.
    var files: [String] {
        (try? FileManager.default.subpathsOfDirectory(atPath: path).sorted()) ?? []
    }

    static func / (folder: Folder, name: String) -> String { folder.path + "/" + name }
}
