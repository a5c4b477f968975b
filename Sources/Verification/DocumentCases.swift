/// Fixtures other than cases with tensors: tables, token lists, manifests of files, noise, whole runs of nano.

import Checkpoints
import Diffusion
import Ground
import Media
import SystemPackage
import Tensors
import Tokenizers

/// The check for the document at `path`, chosen by its file name; nil for any other file.
func documentCheck(_ path: String, in folder: FixtureFolder)
    -> ((any Backend, Checks) throws -> Void)?
{
    let parts = path.split(separator: "/").map(String.init)
    let file = folder.absolute(path)
    let enclosing = FilePath(file).folder.string
    func document(_ check: @escaping (JSON, Checks) throws -> Void)
        -> (any Backend, Checks) throws -> Void
    {
        { _, checks in try check(try JSON(path: file), checks) }
    }
    switch parts.last! {
    case "topk_table.json": return document(checkBlockCounts)
    case "rcm_timesteps.json": return document(checkDistilledTimesteps)
    case "flow_schedules.json": return document(checkFlowSchedules)
    case "adaptive_resolution.json": return document(checkAdaptiveResolutions)
    case "resolution_tables.json": return document(checkResolutions)
    case "cases.json": return document { try checkTokenizer($0, String(enclosing), $1) }
    case "manifest.json":
        return document { json, checks in
            if json["files"] != nil {
                try checkHostileFiles(json, String(enclosing), checks)
            } else {
                try checkContainers(json, String(enclosing), checks)
            }
        }
    case "philox.safetensors": return { try checkNoise(file, $0, $1) }
    case "golden_e2e.safetensors":
        return { try checkWholeRuns(file, String(enclosing), $0, $1) }
    default: return nil
    }
}

// MARK: - Tables

/// rows: [share, key blocks, selected]; where the reference selects none, one block is selected here.
private func checkBlockCounts(_ json: JSON, _ checks: Checks) throws {
    let rows = json["rows"]?.array?.compactMap(\.doubles) ?? []
    let selected = rows.map { row in
        Double(SparseAttention(topK: row[0], arithmetic: .exact).selected(of: Int(row[1])))
    }
    checks.compare("selected", selected, rows.map { max(1, $0[2]) }, .exact)
}

private func checkDistilledTimesteps(_ json: JSON, _ checks: Checks) throws {
    for entry in json["cases"]?.array ?? [] {
        guard let count = entry["num_steps"]?.int, let sigmaMax = entry["sigma_max"]?.double,
            let levels = entry["t"]?.doubles
        else { throw FixtureError("a case lacks num_steps, sigma_max or t") }
        let name = "n\(count) sigma_max \(brief(sigmaMax))"
        let steps = try RCMSampler(count: count, sigmaMax: sigmaMax).steps
        checks.compare(
            "\(name) t", steps.map(\.t) + [steps.last!.next], levels, Tolerance(maximum: 1e-15))
        if let expected = entry["model_timestep_bf16"]?.doubles {
            checks.compare("\(name) timesteps", steps.map(\.timestep), expected, .exact)
        }
        if let expected = entry["model_timestep_fp32"]?.doubles {
            let exact = try RCMSampler(count: count, sigmaMax: sigmaMax, roundTimesteps: false)
            // The reference multiplies t in f32, which costs the last bit of a number up to 1000.
            checks.compare(
                "\(name) exact timesteps", exact.steps.map(\.timestep), expected,
                Tolerance(maximum: 1e-4))
        }
        let first = steps.firstIndex { usesLowNoiseExpert(at: $0.t, boundary: 0.9) }
        let expected = entry["low_noise_from_step_boundary_0.9"]?.int
        checks.expect(
            first == expected, "\(name) expert",
            "the low-noise expert starts at \(first.map(String.init) ?? "no step"), "
                + "expected \(expected.map(String.init) ?? "no step")")
    }
}

private func checkFlowSchedules(_ json: JSON, _ checks: Checks) throws {
    let limit = json["tolerance"]?["abs"]?.double ?? 1e-6
    for entry in json["cases"]?.array ?? [] {
        guard let count = entry["steps"]?.int, let shift = entry["shift"]?.double,
            let kind = entry["kind"]?.string, let sigmas = entry["sigmas"]?.doubles,
            let timesteps = entry["timesteps"]?.doubles
        else { throw FixtureError("a case lacks steps, shift, kind, sigmas or timesteps") }
        let sigmaMax = entry["sigma_max_arg"]?.double
        let schedule = try FlowSchedule(count: count, shift: shift, sigmaMax: sigmaMax)
        let name = "\(kind) n\(count) shift \(brief(shift)) max \(sigmaMax.map(brief) ?? "none")"
        checks.compare(
            "\(name) sigmas", Array(schedule.sigmas.prefix(sigmas.count)), sigmas,
            Tolerance(maximum: limit))
        checks.compare(
            "\(name) timesteps", schedule.timesteps, timesteps, Tolerance(maximum: limit * 1000))
    }
}

private func checkAdaptiveResolutions(_ json: JSON, _ checks: Checks) throws {
    for entry in json["cases"]?.array ?? [] {
        guard let resolution = entry["resolution"]?.string,
            let aspect = entry["aspect_ratio"]?.string, let width = entry["orig_w"]?.int,
            let height = entry["orig_h"]?.int
        else { throw FixtureError("a case lacks resolution, aspect_ratio, orig_w or orig_h") }
        let name = "\(width)x\(height) at \(resolution) \(aspect)"
        let found = try? Resolution(resolution, aspectRatio: aspect)
            .adapted(toImageWidth: width, height: height)
        let expected = [entry["w"]?.int ?? 0, entry["h"]?.int ?? 0]
        if expected.contains(where: { $0 <= 0 }) {
            checks.expect(found == nil, name, "must be refused, gave \(found!)")
        } else {
            checks.expect(
                found.map { [$0.width, $0.height] } == expected, name,
                "gave \(found.map { "\($0)" } ?? "an error"), expected \(expected)")
        }
    }
}

private func checkResolutions(_ json: JSON, _ checks: Checks) throws {
    for (name, ratios) in json["VIDEO_RES_SIZE_INFO"]?.object ?? [:] {
        for (ratio, size) in ratios.object ?? [:] {
            let found = try? Resolution(name, aspectRatio: ratio)
            checks.expect(
                found.map { [$0.width, $0.height] } == size.ints, "\(name) \(ratio)",
                "gave \(found.map { "\($0)" } ?? "an error"), expected \(size.ints ?? [])")
        }
    }
    if json["IMAGE_RES_SIZE_INFO"] != nil {
        checks.skip("IMAGE_RES_SIZE_INFO", "no command makes single images at these sizes")
    }
}

// MARK: - Tokenizer

private func checkTokenizer(_ json: JSON, _ folder: String, _ checks: Checks) throws {
    let length = json["seq_len"]?.int ?? 512
    let entries = json["cases"]?.array ?? []
    let fast = try Tokenizer(path: folder + "/tokenizer.json")
    for (index, entry) in entries.enumerated() {
        guard let text = entry["text"]?.string, let cleaned = entry["cleaned"]?.string,
            let expected = entry["ids"]?.ints
        else { throw FixtureError("case \(index) lacks text, cleaned or ids") }
        let name = "\(index) \(String(text.prefix(24)))"
        let clean = PromptCleaner.clean(text)
        checks.expect(
            clean == cleaned, "\(name): cleaned",
            "gave \(clean.prefix(200).debugDescription), "
                + "expected \(cleaned.prefix(200).debugDescription)")
        let tokens = fast.encode(prompt: text, length: length)
        let ids = tokens.ids.prefix(tokens.count).map { Int($0) }
        let first = zip(ids, expected).prefix { $0 == $1 }.count
        checks.expect(
            ids == expected && tokens.ids.count == length, "\(name): ids",
            "differ first at \(first): \(ids.dropFirst(first).prefix(4)), "
                + "expected \(expected.dropFirst(first).prefix(4))")
        let raw = (fast.ids(cleaned).prefix(length - 1) + [fast.endID]).map { Int($0) }
        checks.expect(raw == expected, "\(name): ids of the cleaned text", "differ")
    }
    guard FilePath(folder + "/spiece.model").exists else { return }
    // A SentencePiece model falls back to bytes, like the same tokenizer.json with that flag set.
    let piece = try Tokenizer(path: folder + "/spiece.model")
    for (index, entry) in entries.enumerated() {
        guard let text = entry["text"]?.string, let expected = entry["ids_byte_fallback"]?.ints
        else { continue }
        let tokens = piece.encode(prompt: text, length: length)
        let ids = tokens.ids.prefix(tokens.count).map { Int($0) }
        let first = zip(ids, expected).prefix { $0 == $1 }.count
        checks.expect(
            ids == expected, "\(index) \(String(text.prefix(24))): spiece.model",
            "differ first at \(first): \(ids.dropFirst(first).prefix(4)), "
                + "expected \(expected.dropFirst(first).prefix(4))")
    }
}

// MARK: - Files

private let dtypeNames: [String: DType] = [
    "float64": .f64, "float32": .f32, "float16": .f16, "bfloat16": .bf16,
    "float8_e4m3fn": .f8e4m3, "float8_e5m2": .f8e5m2, "int64": .i64, "int32": .i32,
    "int16": .i16, "int8": .i8, "uint8": .u8, "bool": .bool,
]

/// Shapes, dtypes and bytes of every tensor in files of every kind.
private func checkContainers(_ json: JSON, _ folder: String, _ checks: Checks) throws {
    for (file, entry) in (json.object ?? [:]).sorted(by: { $0.key < $1.key }) {
        do {
            let checkpoint = try openCheckpoint("\(folder)/\(file)")
            for (name, expected) in entry["tensors"]?.object ?? [:] {
                let label = "\(file): \(name)"
                let tensor = try candidates(for: name).lazy.compactMap {
                    try checkpoint.tensor($0)
                }.first
                guard let tensor else {
                    checks.fail(label, "not found; the file has \(checkpoint.names.prefix(8))")
                    continue
                }
                let dtype = expected["dtype"]?.string.flatMap { dtypeNames[$0] }
                checks.expect(
                    tensor.shape.dimensions == expected["shape"]?.ints && tensor.dtype == dtype,
                    label + " shape", "is \(tensor.dtype) \(tensor.shape)")
                let bytes = UnsafeRawBufferPointer(
                    start: tensor.hostAddress, count: tensor.byteCount)
                checks.expect(
                    SHA256.hexadecimal(bytes) == expected["sha256_contiguous"]?.string,
                    label + " bytes", "have a different digest")
            }
        } catch {
            checks.fail(file, "\(error)")
        }
    }
}

/// Names under which a checkpoint may have a tensor that the manifest calls `name`: without the dictionary that
/// it is nested in, and without the wrapper that training adds.
private func candidates(for name: String) -> [String] {
    var names = [name]
    for prefix in ["state_dict/", "net."] {
        names += names.filter { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }
    }
    return names
}

/// Files that must be refused with an error, quickly and without running anything from them.
private func checkHostileFiles(_ json: JSON, _ folder: String, _ checks: Checks) throws {
    for (file, entry) in (json["files"]?.object ?? [:]).sorted(by: { $0.key < $1.key }) {
        let marker = entry["side_effect_marker"]?.string
        let existed = marker.map { FilePath($0).exists } ?? false
        let start = ContinuousClock.now
        var refusal: String?
        do {
            let checkpoint = try openCheckpoint("\(folder)/\(file)")
            for name in checkpoint.names { _ = try checkpoint.tensor(name) }
        } catch {
            refusal = "\(error)"
        }
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        let verdict = entry["verdict"]?.string ?? "reject"
        switch verdict {
        case "accept": checks.expect(refusal == nil, file, "refused: \(refusal ?? "")")
        case "reject":
            checks.expect(
                refusal != nil, file, "accepted, although \(entry["why"]?.string ?? "hostile")")
        default: checks.expect(true, file, "")
        }
        checks.expect(seconds < 2, "\(file) time", "took \(brief(seconds)) s")
        let exists = marker.map { FilePath($0).exists } ?? false
        checks.expect(exists == existed, "\(file) side effect", "\(marker ?? "") was created")
    }
}

// MARK: - Noise

/// Two draws in a row of torch.randn on CUDA, for several seeds and shapes.
private func checkNoise(_ path: String, _ device: any Backend, _ checks: Checks) throws {
    let file = try openCheckpoint(path)
    for name in file.names where name.hasSuffix("_idx") {
        let stem = name.dropLast("_idx".count)
        let parts = stem.split(separator: "_")
        guard parts.count == 2, let seed = UInt64(parts[0].dropFirst()),
            let indices = try file.tensor(name)?.doubles().map({ Int($0) })
        else { throw FixtureError("\(path): no seed and shape in '\(name)'") }
        let shape = Shape(parts[1].split(separator: "x").compactMap { Int($0) })
        var generator = PhiloxNoise(seed: seed)
        var sums: [Double] = []
        for draw in ["first", "second"] {
            let values = device.read(device.noise(shape, generator: &generator)).doubles()
            sums += [values.reduce(0, +), values.reduce(0) { $0 + $1 * $1 }]
            guard let expected = try file.tensor("\(stem)_\(draw)")?.doubles() else { continue }
            checks.compare(
                "\(stem) \(draw)", indices.map { values[$0] }, expected, Tolerance(maximum: 5e-6))
        }
        if let expected = try file.tensor("\(stem)_sum")?.doubles() {
            checks.compare(
                "\(stem) sums", sums, expected,
                Tolerance(maximum: 1e-3 + 3e-7 * Double(shape.count)))
        }
    }
}
