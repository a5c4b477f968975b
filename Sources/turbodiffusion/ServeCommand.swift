/// `turbodiffusion serve`: models that stay loaded, asked over HTTP.

public import ArgumentParser
import Catalog
import Devices
import Families
public import Service
import Sessions
import Terminal

struct ServeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "Keep models loaded and take requests over HTTP.",
        discussion: """
            The protocol is /v1/videos as OpenAI's clients speak it, with events, cancelling and a page at /; \
            docs/service.md describes it. Requests wait in a queue that survives a crash.
            """)

    @Option(
        help: "A model to serve, by name or folder; repeatable (default: all that are here).",
        completion: .directory)
    var model: [String] = []
    @Option(help: "A folder of LoRAs that requests may name.", completion: .directory)
    var loras: String?
    @Option(help: "Where videos and the queue are kept.", completion: .directory)
    var output = "output/service"
    @Option(help: "Address to listen on.")
    var host = "127.0.0.1"
    @Option(help: "Port to listen on; 0 for any that is free.")
    var port = 8000

    @OptionGroup(title: "Who may ask") var access: AccessOptions
    @OptionGroup(title: "Limits") var limits: LimitOptions
    @OptionGroup(title: "Machine") var machine: MachineOptions

    struct AccessOptions: ParsableArguments {
        @Option(help: "Require one of the keys in this file, one a line.", completion: .file())
        var apiKeyFile: String?
        @Option(help: "A name beside loopback under which the service may be asked; repeatable.")
        var allowedHost: [String] = []
        @Option(help: "The origin of pages that may ask, such as https://example.org; repeatable.")
        var allowedOrigin: [String] = []
    }

    struct LimitOptions: ParsableArguments {
        @Option(help: "Requests that may wait.")
        var queueLimit = 1000
        @Option(help: "The largest body of a request (default 32MiB).", transform: ByteCount.init)
        var maxBody: ByteCount?
        @Option(help: "The most frames of a video.")
        var maxFrames = 1025
        @Option(help: "The most pixels of a frame.")
        var maxPixels = 1 << 22
        @Option(help: "The longest run, in seconds.")
        var maxRunSeconds = 3600
        @Option(help: "Hours after which a finished video goes.")
        var expireHours = 168.0
        @Option(
            help: "The most disk space of all videos (default 20GiB).", transform: ByteCount.init)
        var diskLimit: ByteCount?
    }

    struct MachineOptions: ParsableArguments {
        @Option(help: "Where to compute: auto, cpu, cuda or cuda:N; repeatable for several GPUs.")
        var device: [DeviceChoice] = []
        @Option(
            help:
                "GPUs that make each video together, such as 0,1; repeatable for several groups beside each other."
        )
        var devices: [DeviceGroup] = []
        @Option(help: "Threads of the CPU (default: all).")
        var threads: Int?
        @Option(
            help: "The most memory of each device to use, such as 16GiB.", transform: ByteCount.init
        )
        var memoryLimit: ByteCount?
        @Option(help: "Seconds without a request after which models leave the device; 0 for never.")
        var keepLoaded = 600
        @Flag(help: "Encode every prompt anew.")
        var noEmbeddingCache = false
        @Option(help: "What becomes of a run when the service is asked to stop: finish or requeue.")
        var drain = Drain.finish
        @Flag(help: "Print nothing but errors.")
        var quiet = false
    }

    func validate() throws {
        guard (0...65535).contains(port) else {
            throw ValidationError("--port must be 0 to 65535, not \(port)")
        }
        let positive = [
            ("--queue-limit", limits.queueLimit), ("--max-frames", limits.maxFrames),
            ("--max-pixels", limits.maxPixels), ("--max-run-seconds", limits.maxRunSeconds),
        ]
        for (name, value) in positive where value < 1 {
            throw ValidationError("\(name) must be 1 or more, not \(value)")
        }
        guard machine.device.isEmpty || machine.devices.isEmpty else {
            throw Machines.exclusion
        }
        guard machine.keepLoaded >= 0 else {
            throw ValidationError("--keep-loaded must be 0 or more, not \(machine.keepLoaded)")
        }
        guard limits.expireHours > 0, limits.expireHours.isFinite else {
            throw ValidationError("--expire-hours must be above 0, not \(limits.expireHours)")
        }
        let isLoopback = ["127.0.0.1", "localhost", "::1"].contains(host)
        guard isLoopback || access.apiKeyFile != nil else {
            throw ValidationError(
                "--host \(host) can be reached from other machines: name keys with --api-key-file")
        }
    }

    func run() async throws {
        let options = try serviceOptions()
        let server: Server
        do { server = try Server(options) } catch { throw UserError("service", "\(error)") }
        Interruption.takeOver { server.stop() }
        let (host, quiet) = (host, machine.quiet)
        do {
            try await server.run { port in
                let name = host.contains(":") ? "[\(host)]" : host
                if !quiet { Output.note("listening on http://\(name):\(port)") }
            }
        } catch {
            throw UserError(error, takesPicture: false)
        }
    }

    private func serviceOptions() throws -> ServiceOptions {
        var options = ServiceOptions()
        (options.host, options.port, options.output) = (host, port, output)
        options.models = try models()
        options.loras = loras.map(absolutePath)
        do { options.keys = try access.apiKeyFile.map(APIKeys.init) } catch {
            throw UserError("service", "\(error)")
        }
        options.allowedHosts = Set(access.allowedHost.map { $0.lowercased() })
        options.allowedOrigins = Set(access.allowedOrigin)
        options.queueLimit = limits.queueLimit
        options.bodyLimit = limits.maxBody?.bytes ?? options.bodyLimit
        options.frameLimit = limits.maxFrames
        options.pixelLimit = limits.maxPixels
        options.runSeconds = Double(limits.maxRunSeconds)
        options.expireSeconds = limits.expireHours * 3600
        options.diskLimit = limits.diskLimit?.bytes ?? options.diskLimit
        options.machines =
            machine.device.map { Machines(device: $0) }
            + machine.devices.map { Machines(group: $0) }
        if options.machines.isEmpty { options.machines = [Machines(device: .usual)] }
        options.drain = machine.drain
        options.session.threads = machine.threads
        options.session.memoryLimit = try (machine.memoryLimit ?? Defaults.memoryLimit())?.bytes
        options.session.keepLoaded =
            machine.keepLoaded == 0 ? nil : .seconds(machine.keepLoaded)
        if machine.noEmbeddingCache { options.session.embeddings = nil }
        options.session.program = "turbodiffusion \(TurboDiffusion.programVersion)"
        let quiet = machine.quiet
        let log: @Sendable (String) -> Void = { if !quiet { Output.note($0) } }
        options.session.note = log
        options.log = log
        return options
    }

    /// With paths from the root on: by that messages for clients know them, and leave the folders out.
    private static func absolute(_ models: ModelSet) -> ModelSet {
        var models = models
        for file in ModelFile.allCases { models[file] = models[file].map(absolutePath) }
        return models
    }

    /// Those that were named, or all of the catalogue whose files are here.
    private func models() throws -> [ServedModel] {
        let catalog = Catalog.published
        if model.isEmpty {
            let found = catalog.names.compactMap { name -> ServedModel? in
                guard let models = try? catalog.open(ModelChoice(name)),
                    (try? models.checkPresence(of: ModelFile.allCases)) != nil
                else { return nil }
                return ServedModel(name: name, models: Self.absolute(models))
            }
            guard !found.isEmpty else {
                throw UserError(
                    "model.catalog",
                    "no model is here: 'turbodiffusion get NAME' downloads one, or name its folder with --model"
                )
            }
            return found
        }
        do {
            return try model.map { name in
                let models = try catalog.open(ModelChoice(name))
                try models.checkPresence(of: ModelFile.allCases)
                return ServedModel(
                    name: catalog.entry(named: name)?.name ?? models.name,
                    models: Self.absolute(models))
            }
        } catch {
            throw UserError(error, takesPicture: false)
        }
    }
}

extension Drain: ExpressibleByArgument {}
