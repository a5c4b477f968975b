/// The options of `serve`.

import ArgumentParser
import Service
import Testing

@testable import turbodiffusion

@Suite struct ServeTests {
    @Test(
        "what cannot be is refused before anything is opened",
        arguments: [
            ["--host", "0.0.0.0"], ["--port", "70000"], ["--queue-limit", "0"],
            ["--max-run-seconds", "0"], ["--keep-loaded=-1"], ["--expire-hours", "0"],
            ["--drain", "never"], ["--device", "tpu"],
        ])
    func refused(arguments: [String]) {
        #expect(throws: (any Error).self) { try ServeCommand.parse(arguments) }
    }

    @Test("other machines are let in with keys only; defaults stay on this one")
    func defaults() throws {
        #expect(try ServeCommand.parse([]).host == "127.0.0.1")
        let open = try ServeCommand.parse([
            "--host", "0.0.0.0", "--api-key-file", "keys", "--device", "cuda:0", "--device",
            "cuda:1",
        ])
        #expect(open.machine.device.count == 2)
        #expect(open.machine.drain == .finish)
    }
}
