/// `turbodiffusion interactive`, and `--serve` of t2v and i2v: a terminal whose models stay loaded.

import ArgumentParser
import Catalog
import Families
import Interactive
import Sessions
import Terminal

struct InteractiveCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "interactive",
        abstract: "Make one video after the other in a terminal; models stay loaded.",
        discussion: """
            A line is a prompt, and makes a video; a line with a slash is a command: /help lists them. Options are those \
            of t2v and i2v, and where the session begins. Lines may come from a pipe too.

            Examples:
              turbodiffusion interactive --model Wan2.1-1.3B --num_steps 2
              turbodiffusion interactive --image_path cat.jpg
            """)

    @Option(
        help: "The picture that videos start with, for models that take one.", completion: .file())
    var imagePath: String?
    @OptionGroup var options: GenerationOptions

    func run() async throws {
        let model = options.model.model
        var conditioning = imagePath == nil ? Family.Conditioning.none : .firstFrame
        if let model, let models = try? Catalog.published.open(ModelChoice(model)) {
            conditioning = models.family.conditioning
        }
        let generation = Generation(
            options: options, conditioning: conditioning, image: imagePath)
        try await generation.converse()
    }
}

extension Generation {
    /// Holds a conversation that begins with these options.
    func converse() async throws {
        let takesPicture = conditioning == .firstFrame
        do {
            try checkConversation()
            let models = try catalog.open(modelChoice)
            try models.checkPresence(of: ModelFile.allCases)
            let builder = RequestBuilder(options: options, image: image, boundary: boundary)
            let request = try builder.request(
                for: models.family, resolution: catalog.entry(named: models.name)?.resolution)
            var start = ConversationOptions(models: models, request: request)
            start.crf = options.output.crf
            start.adaptsToImage = adaptsToImage
            if let path = options.output.savePath { start.path = path }

            var session = SessionOptions()
            session.machines = execution.machines
            session.threads = execution.threads
            session.memoryLimit = execution.memoryLimit?.bytes
            session.keepLoaded = nil
            session.program = "turbodiffusion \(TurboDiffusion.programVersion)"
            session.note = { Output.note("note: \($0)") }
            let device = Session(session)
            let opened = try await device.open()
            start.title = "\(models.name) on \(opened.name)"
            let maker = SessionMaker(device, catalog: catalog) {
                UserError($0, takesPicture: takesPicture).description
            }
            await Conversation.hold(start, maker) { interruption in
                Interruption.intercept { interruption.interrupt() }
            }
        } catch {
            throw UserError(error, takesPicture: takesPicture)
        }
    }

    /// Refuses what is of one run alone.
    private func checkConversation() throws {
        let (content, stages) = (options.content, options.stages)
        let files = [
            stages.textEmbedding, stages.cachedEmbedding, stages.saveTextEmbedding,
            stages.conditioning, stages.saveConditioning, stages.latents, stages.saveLatents,
        ]
        for (option, isSaid, instead) in [
            ("--prompts", content.prompts != nil, "type them one after the other, or pipe them in"),
            ("--seeds", content.seeds != nil, "/vary N makes N videos with other seeds"),
            ("--from", content.from != nil, "/load FILE takes its settings"),
            ("--dry_run", execution.dryRun, "leave one of them out"),
            ("--json", execution.json, "leave one of them out"),
            ("a file of a stage", files.contains { $0 != nil }, "leave it out"),
        ] where isSaid {
            throw UserError(
                "request.conflict", "\(option) does not go with an interactive terminal: \(instead)"
            )
        }
    }
}
