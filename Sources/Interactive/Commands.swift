/// What each command does.

import Families
import Glibc
import Ground
import Media
import Runs
import SystemPackage

extension Conversation {
    /// - Returns: whether the session ends.
    func carryOut(_ command: Command) throws -> Bool {
        switch command {
        case .help(let name): for text in Command.help(name) { tell(text) }
        case .show: try show()
        case .set(let setting, let value): try set(setting, value)
        case .reset(let setting): reset(setting)
        case .quit: return true
        case .again(let number): try again(number)
        case .vary(let count): try vary(count)
        case .queue(nil): showQueue()
        case .queue(let prompt?):
            var chosen = settings
            chosen[.prompt] = prompt
            try submit(chosen, to: numbered(path))
        case .cancel(let what): try cancel(what)
        case .history: showHistory()
        case .open(let number): try open(number)
        case .save(let file): try save(homeExpanded(file))
        case .load(let file): try load(homeExpanded(file))
        }
        return false
    }

    // MARK: Settings

    private func show() throws {
        var values = Settings(try checked(settings, isComplete: false))
        values[.model] = models.name
        values[.output] = numbered(path)
        values[.crf] = crf.map { "\($0)" }
        values[.preview] = settings[.preview] ?? "auto"
        if settings[.seed]?.lowercased() == "random" { values[.seed] = "random" }
        if models.family.conditioning == .firstFrame {
            values[.adaptiveResolution] = adapts ? "on" : "off"
        }
        for setting in Setting.allCases {
            guard let value = values[setting], !value.isEmpty else { continue }
            tell("\(setting.rawValue.padded(to: 20)) \(value)")
        }
    }

    /// A value that no request can have leaves all as it was.
    private func set(_ setting: Setting, _ value: String) throws {
        switch setting {
        case .model:
            let chosen = try maker.models(named: homeExpanded(value))
            try use(chosen, settings)
            return say("model \(models.name)")
        case .output: path = try outputPath(homeExpanded(value))
        default: break
        }
        var chosen = settings
        chosen[setting] = setting.takesFile ? homeExpanded(value) : value
        if setting == .image, let image = chosen[.image], !FilePath(image).exists {
            throw SettingError("no such file: \(image.printable)")
        }
        if setting == .lora {
            for lora in try chosen.request(base, for: models.family).loras
            where !FilePath(lora.path).exists {
                throw SettingError("no such file: \(lora.path.printable)")
            }
        }
        if setting == .sampler, try isDistilled(settings) != (value.lowercased() == "rcm") {
            // What was set is of samplers of the other kind.
            for other in [Setting.steps, .sigmaMax, .ode, .guidance, .shift] { chosen[other] = nil }
        }
        _ = try checked(chosen, isComplete: false)
        try take(chosen)
    }

    private func isDistilled(_ values: Settings) throws -> Bool {
        switch try values.request(base, for: models.family).sampling {
        case .distilled: true
        case .flow: false
        }
    }

    /// Another model, with what was set, as far as it has that.
    private func use(_ chosen: ModelSet, _ values: Settings) throws {
        let before = (models, base)
        // What was said at the start was said of another model.
        models = chosen
        base =
            chosen.family == options.models.family
            ? options.request : Request(base.prompt, for: chosen.family)
        do {
            _ = try checked(values, isComplete: false)
        } catch {
            (models, base) = before
            throw error
        }
    }

    private func take(_ chosen: Settings) throws {
        settings = chosen
        if let text = chosen[.crf] { crf = Int(text) }
        if chosen[.adaptiveResolution] != nil { adapts = try chosen.isOn(.adaptiveResolution) }
    }

    private func reset(_ setting: Setting?) {
        let all = setting == nil
        if let setting { settings[setting] = nil } else { settings = Settings() }
        if all || setting == .model { (models, base) = (options.models, options.request) }
        if all || setting == .output { path = options.path }
        if all || setting == .crf { crf = options.crf }
        if all || setting == .adaptiveResolution { adapts = options.adaptsToImage }
    }

    // MARK: Videos

    private func again(_ number: Int?) throws {
        guard let number else { return try submit(try withPrompt(), to: numbered(path)) }
        let order = try job(number).order
        let before = (models, base)
        defer { (models, base) = before }
        (models, base) = (order.models, order.request)
        try submit(Settings(), to: numbered(path))
    }

    private func vary(_ count: Int) throws {
        var chosen = try withPrompt()
        for _ in 0..<count {
            chosen[.seed] = "\(UInt64.random(in: 0...UInt64(UInt32.max)))"
            try submit(chosen, to: numbered(path))
        }
    }

    private func withPrompt() throws -> Settings {
        if (settings[.prompt] ?? base.prompt).trimmed.isEmpty {
            throw SettingError("nothing has been asked for yet: type a prompt")
        }
        return settings
    }

    private func job(_ number: Int?) throws -> Job {
        guard let number else {
            guard let last = jobs.last(where: { $0.state == .done }) else {
                throw SettingError("no video has been made yet")
            }
            return last
        }
        guard number <= jobs.count else {
            throw SettingError(
                jobs.isEmpty
                    ? "no video has been made yet"
                    : "there is no video \(number); there are 1 to \(jobs.count)")
        }
        return jobs[number - 1]
    }

    private func cancel(_ what: Command.Cancelled) throws {
        switch what {
        case .running:
            guard let index = running else { throw SettingError("nothing is being made") }
            jobs[index].task?.cancel()
        case .all:
            for index in jobs.indices where jobs[index].state == .waiting {
                jobs[index].state = .cancelled
            }
            if let index = running { jobs[index].task?.cancel() }
        case .number(let number):
            switch try job(number).state {
            case .running: jobs[number - 1].task?.cancel()
            case .waiting:
                jobs[number - 1].state = .cancelled
                say("\(number): cancelled")
            case .done, .failed, .cancelled: throw SettingError("\(number) is over already")
            }
        }
    }

    private func describe(_ job: Job) -> String {
        let state =
            switch job.state {
            case .waiting: "waits"
            case .running: "is being made"
            case .done: job.files.joined(separator: ", ")
            case .failed: "failed"
            case .cancelled: "cancelled"
            }
        let request = job.order.request
        return "\(job.number): \(state), seed \(request.seed), \(request.width)x\(request.height): "
            + request.prompt.prefix(60)
    }

    private func showQueue() {
        let open = jobs.filter { $0.state == .waiting || $0.state == .running }
        if open.isEmpty { say("nothing waits") }
        for job in open { tell(describe(job)) }
    }

    private func showHistory() {
        if jobs.isEmpty { say("nothing yet") }
        for job in jobs { tell(describe(job)) }
    }

    private func open(_ number: Int?) throws {
        guard let file = try job(number).files.last else {
            throw SettingError("\(number ?? 0) has no file")
        }
        guard getenv("DISPLAY") != nil || getenv("WAYLAND_DISPLAY") != nil else {
            return tell(file)
        }
        // The shell ends at once and leaves the viewer to the system.
        let script = "xdg-open \"$0\" >/dev/null 2>&1 &"
        var arguments: [UnsafeMutablePointer<CChar>?] =
            ["sh", "-c", script, file].map { (word: String) in strdup(word) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var child = pid_t()
        if posix_spawnp(&child, "sh", nil, nil, &arguments, environ) == 0 {
            var status: Int32 = 0
            waitpid(child, &status, 0)
        }
        tell(file)
    }

    // MARK: Files

    private static let heading = "# turbodiffusion settings"

    private func save(_ file: String) throws {
        var values = Settings(try checked(settings, isComplete: false))
        values[.model] = models.name
        values[.crf] = crf.map { "\($0)" }
        values[.preview] = settings[.preview]
        if settings[.seed]?.lowercased() == "random" { values[.seed] = "random" }
        var text = Self.heading + "\n"
        for setting in Setting.allCases {
            guard let value = values[setting], !value.isEmpty else { continue }
            text += "\(setting.rawValue) \(value.replacing("\n", with: " "))\n"
        }
        try PendingFile.write(Array(text.utf8), to: FilePath(file), overwrite: false)
        say("wrote \(file.printable)")
    }

    private func load(_ file: String) throws {
        guard FilePath(file).exists else { throw SettingError("no such file: \(file.printable)") }
        let isText = (try? FilePath(file).contents(limit: 1 << 20)).map {
            String(decoding: $0, as: UTF8.self)
        }.flatMap { $0.hasPrefix(Self.heading) ? $0 : nil }
        if let isText { return try load(settings: isText, of: file) }
        let (maker, inbox) = (maker, inbox)
        Task {
            do {
                inbox.post(.loaded(.success(try await maker.load(file))))
            } catch {
                inbox.post(.loaded(.failure(SettingError(maker.message(of: error)))))
            }
        }
        loaded = nil
        while loaded == nil {
            _ = inbox.wait()
            _ = takeNews()
        }
        guard let run = try loaded?.get() else { return }
        let values = Settings(run.request)
        try use(run.models, values)
        settings = values
        crf = run.crf ?? crf
        say("prompt: \(run.request.prompt.printable)")
    }

    private func load(settings text: String, of file: String) throws {
        var values = Settings()
        for (number, line) in text.split(separator: "\n", omittingEmptySubsequences: false)
            .enumerated() where !line.hasPrefix("#") && !line.trimmed.isEmpty
        {
            guard case .set(let setting, let value) = try Command("/set \(line)") else {
                throw SettingError("\(file.printable), line \(number + 1): no setting")
            }
            values[setting] = value
        }
        if let name = values[.model] {
            try use(try maker.models(named: name), values)
        } else {
            _ = try checked(values, isComplete: false)
        }
        let named = try values[.output].map { try outputPath($0) }
        try take(values)
        path = named ?? path
    }
}
