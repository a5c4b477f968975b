/// Frames on their way out: the formats, the file that videos become, and a device that works ahead.

import CPU
import Media
import Runs
import Synchronization
import Tensors
import Testing

struct FrameTests {
    private func videoOptions() -> RunOptions {
        var options = RunOptions()
        options.pixelFormat = .nv12
        return options
    }

    @Test("Frames in NV12 show the same pictures as frames in RGB")
    func formats() async throws {
        let (engine, models) = (engine(), try nano())
        let pictures = try await frames(of: tinyRequest(), models, on: engine)
        let video = try await frames(of: tinyRequest(), models, on: engine, videoOptions())
        #expect(2 * video.count == pictures.count)
        for frame in 0..<9 {
            for pixel in 0..<64 * 64 {
                let at = 3 * (frame * 64 * 64 + pixel)
                let luma =
                    0.2126 * Double(pictures[at]) + 0.7152 * Double(pictures[at + 1])
                    + 0.0722 * Double(pictures[at + 2])
                let got = Double(video[frame * 64 * 96 + pixel])
                // Both are rounded, each from the decoder's own numbers.
                try #require(abs(got - 16 - 219 / 255 * luma) <= 0.95)
            }
        }
    }

    @Test("A request gives one file, whose frames are near those of its pictures")
    func file() async throws {
        let folder = try TemporaryFolder()
        let (engine, models) = (engine(), try nano())
        func write(_ name: String) async throws -> Video {
            let path = folder.path + "/" + name
            let writer = try VideoWriter(
                .init(path: path, replaces: false, width: 64, height: 64, pixelFormat: .nv12))
            _ = try await engine.finish(try Run(tinyRequest(), models, videoOptions())) {
                #expect($0.format == .nv12)
                try await writer.append($0.bytes)
            }
            try await writer.finish()
            return try await readVideo(path: path)
        }
        let video = try await write("a.mp4")
        #expect(try await write("b.mp4").pixels == video.pixels)
        let pictures = try await frames(of: tinyRequest(), models, on: engine)
        #expect(video.pixels.count == pictures.count)
        let squares = zip(video.pixels, pictures).reduce(0) {
            let d = Int($1.0) - Int($1.1)
            return $0 + d * d
        }
        // 38 dB
        #expect(Double(squares) / Double(pictures.count) < 10.3)
    }

    /// Copies arrive when they are waited for; keeps what happened, in order.
    private final class Slow: ForwardingBackend {
        private final class Copy: HostCopy {
            let tensor: Tensor
            let happened: () -> Void
            init(_ tensor: Tensor, _ happened: @escaping () -> Void) {
                self.tensor = tensor
                self.happened = happened
                super.init()
            }
            override var isComplete: Bool { false }
            override func wait() throws -> Tensor {
                happened()
                return tensor
            }
        }

        private let log: @Sendable (String) -> Void
        init(_ base: any Backend, _ log: @escaping @Sendable (String) -> Void) {
            self.log = log
            super.init(base)
        }
        override func run(_ operation: Operation) -> [Tensor] {
            if case .nv12(let o) = operation { log("begin \(o.x.shape[0])") }
            return super.run(operation)
        }
        override func beginRead(_ x: Tensor) -> HostCopy {
            let copy = read(x)
            return Copy(copy) { [log] in if copy.dtype == .u8 { log("take \(copy.shape[0])") } }
        }
    }

    @Test("An asynchronous device is one chunk ahead, and the frames are the same")
    func ahead() async throws {
        let models = try nano()
        let request = tinyRequest()
        let log = Log()
        let slow = Engine {
            OpenedDevice(Slow(CPUBackend()) { log.add($0) }, sageArchitecture: .sm90)
        }
        let got = try await frames(of: request, models, on: slow, videoOptions())
        #expect(try await frames(of: request, models, videoOptions()) == got)
        #expect(
            log.lines == ["begin 1", "begin 4", "take 1", "begin 4", "take 4", "take 4"])
    }
}

private final class Log: Sendable {
    private let list = Mutex<[String]>([])
    func add(_ line: String) { list.withLock { $0.append(line) } }
    var lines: [String] { list.withLock { $0 } }
}
