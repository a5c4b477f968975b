/// Data sets, and checkpoints of training runs.

import Checkpoints
import Tensors
import Training

extension Fixture {
    /// A file beside the case.
    fileprivate func beside(_ name: String) -> String { folder.absolute("\(group)/\(name)") }
}

/// Every tensor of a folder of torch.distributed.checkpoint as stored.
func checkTrainingState(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    guard let path = fixture.config["checkpoint"]?.string else {
        throw FixtureError("config lacks 'checkpoint'")
    }
    let state = try openTrainingState(fixture.beside(path))
    for name in fixture.expectedNames {
        guard let tensor = try state.tensor(String(name.dropFirst(4))) else {
            checks.fail(name, "the checkpoint has no such tensor")
            continue
        }
        try checks.compare(name, tensor, in: fixture)
    }
}

/// What is published of a run: the averages, in bf16, as `net.*`.
func checkExport(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    guard let path = fixture.config["checkpoint"]?.string else {
        throw FixtureError("config lacks 'checkpoint'")
    }
    // Opened as a model, the average is what a run's checkpoint is.
    let model = try openCheckpoint(fixture.beside(path))
    for name in fixture.expectedNames {
        let short = name.dropFirst("out.net.".count)
        guard let tensor = try model.tensor(String(short)) else {
            checks.fail(name, "the average has no such tensor")
            continue
        }
        try checks.compare(name, tensor.converted(to: .bf16), in: fixture)
    }
}

func checkNegativeEmbedding(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    guard let path = fixture.config["path"]?.string else {
        throw FixtureError("config lacks 'path'")
    }
    let tensor = try readTorchTensor(fixture.beside(path))
    try checks.compare("out.neg", tensor.converted(to: .bf16), in: fixture)
}

private func shards(_ fixture: Fixture) throws -> TarShards {
    try TarShards((fixture.config["shards"]?.array ?? []).compactMap(\.string).map(fixture.beside))
}

func checkShards(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let shards = try shards(fixture)
    let keys = (fixture.config["samples"]?.array ?? []).compactMap(\.string)
    if Set(shards.samples.map(\.key)) != Set(keys) || shards.samples.count != keys.count {
        checks.fail("out", "samples \(shards.samples.map(\.key)), expected \(keys)")
    }
    for (number, key) in keys.enumerated() {
        guard let index = shards.samples.firstIndex(where: { $0.key == key }) else { continue }
        let sample = try shards.read(index)
        try checks.compare("out.\(number).latents", sample.latents, in: fixture)
        try checks.compare("out.\(number).t5_text_embeddings", sample.text, in: fixture)
        if sample.prompt != fixture.config["prompts"]?[key]?.string,
            !(fixture.config["prompts"]?[key]?.string == nil && sample.prompt.isEmpty)
        {
            checks.fail("out.\(number)", "the prompt is '\(sample.prompt)'")
        }
    }
}

/// A sample without one of its parts, or with one that is damaged, is an error that names it.
func checkRejectedShards(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    do {
        let shards = try shards(fixture)
        for index in shards.samples.indices { _ = try shards.read(index) }
        checks.fail("shards", "an incomplete or damaged sample was accepted")
    } catch let error as DataError {
        checks.pass("shards", "refused: \(error)")
    }
}
