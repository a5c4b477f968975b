/// The interactive terminal: prompts and commands in, videos out.

public import Families
import Glibc
import Ground
import Media
public import Runs
import Sessions
import Synchronization
import SystemPackage
import Terminal

/// How a conversation begins.
public struct ConversationOptions: Sendable {
    public var models: ModelSet
    /// Prompt, picture and all else that was said before; without a prompt it is empty.
    public var request: Request
    public var crf: Int?
    public var adaptsToImage = false
    /// What the next file is called, numbered where it exists.
    public var path = "output/generated_video.mp4"
    /// What the first line says.
    public var title = "turbodiffusion"

    public init(models: ModelSet, request: Request) {
        self.models = models
        self.request = request
    }
}

/// Something that another thread has to say.
enum News: Sendable {
    case event(Int, SessionEvent)
    case made(Int, MadeVideo)
    case failed(Int, message: String, isCancelled: Bool)
    case loaded(Result<LoadedRun, SettingError>)
    /// Ctrl-C while nothing is being made.
    case interrupt
}

/// One conversation. It runs on a thread of its own, as it waits for lines; videos are made meanwhile.
///
/// On a terminal with an editor lines are read while videos are made. Otherwise each line waits for the video before it.
public final class Conversation {
    let options: ConversationOptions
    let maker: any VideoMaker
    let inbox: Mailbox<News>
    let interruption: Interruption
    let lines: any LineSource

    // The state, of the thread that reads.
    var settings = Settings()
    var models: ModelSet
    var base: Request
    /// The path that was said last, or the standard one.
    var path: String
    var crf: Int?
    var adapts: Bool
    var jobs: [Job] = []
    var loaded: Result<LoadedRun, SettingError>?
    var line = MovingLine(on: .output)
    /// Rows of the picture that the next one replaces.
    var pictureRows = 0
    /// The progress that stands before a line, and since when.
    var shownProgress: (text: String, at: ContinuousClock.Instant)?

    /// One video of this session.
    struct Job {
        enum State { case waiting, running, done, failed, cancelled }
        let number: Int
        var order: Order
        var state = State.waiting
        var task: Task<Void, Never>?
        var files: [String] = []
        var seconds = 0.0
        var fraction = 0.0
        var stage = "begin"
        var began = ContinuousClock.now
        var told: Set<String> = []
    }

    /// Lets Ctrl-C end the video that is being made. For any thread.
    public final class Interruption: Sendable {
        private let running = Mutex<(task: Task<Void, Never>, isAsked: Bool)?>(nil)
        private let inbox: Mailbox<News>
        /// How the terminal was before lines were edited on it; nil where there is none.
        private let terminal: termios?

        init(_ inbox: Mailbox<News>) {
            self.inbox = inbox
            var state = termios()
            terminal = tcgetattr(STDIN_FILENO, &state) == 0 ? state : nil
        }

        func setRunning(_ task: Task<Void, Never>?) {
            running.withLock { $0 = task.map { ($0, false) } }
        }

        /// - Returns: whether that was all; false where the process should end: a second time, and where nobody types.
        public func interrupt() -> Bool {
            let isTaken = running.withLock { running -> Bool? in
                guard let now = running else { return nil }
                if now.isAsked { return false }
                running?.isAsked = true
                now.task.cancel()
                return true
            }
            if isTaken == nil, terminal != nil { inbox.post(.interrupt) }
            let goesOn = isTaken ?? (terminal != nil)
            if !goesOn, var terminal { tcsetattr(STDIN_FILENO, TCSANOW, &terminal) }
            return goesOn
        }
    }

    init(
        _ options: ConversationOptions, _ maker: any VideoMaker, inbox: Mailbox<News>,
        interruption: Interruption, lines: any LineSource
    ) {
        (self.options, self.maker, self.inbox) = (options, maker, inbox)
        (self.interruption, self.lines) = (interruption, lines)
        (models, base, path) = (options.models, options.request, options.path)
        (crf, adapts) = (options.crf, options.adaptsToImage)
    }

    /// Holds a conversation on standard input and output, until it ends.
    /// - Parameter ready: given what ends the video that is being made.
    public static func hold(
        _ options: ConversationOptions, _ maker: any VideoMaker,
        ready: @escaping @Sendable (Interruption) -> Void
    ) async {
        let inbox = Mailbox<News>()
        let interruption = Interruption(inbox)
        ready(interruption)
        await onThread {
            let waits: (Int32) -> Bool = { inbox.wait(orInput: $0) }
            // Completion asks the editor's owner, which is made after it.
            let editor = LineEditor(historyFile: LineEditor.userHistory, waits: waits) {
                Command.completions(of: $0, files: files(beginning:))
            }
            let conversation = Conversation(
                options, maker, inbox: inbox, interruption: interruption,
                lines: editor ?? PlainLines(waits: waits) as any LineSource)
            conversation.run()
        }
    }

    // MARK: The loop

    func run() {
        if isatty(STDIN_FILENO) == 1 {
            say("\(options.title). A prompt makes a video, /help tells more.")
        }
        while true {
            switch readPrompt() {
            case .end: return finish()
            case .interrupted: say("Ctrl-D or /quit ends the session.")
            case .text(let text):
                let text = text.trimmed
                if text.isEmpty { continue }
                lines.remember(text)
                do {
                    if !text.hasPrefix("/") {
                        try askAndMake(text)
                    } else if try carryOut(Command(text)) {
                        return finish()
                    }
                } catch {
                    say(maker.message(of: error))
                }
                if !lines.readsMeanwhile { waitForVideos() }
            }
        }
    }

    /// A line, and those that it goes on in.
    private func readPrompt() -> Line {
        var text = ""
        while true {
            switch read(text.isEmpty ? "> " : "… ") {
            case .interrupted: return .interrupted
            // What was begun is not lost at the end of a file.
            case .end: return text.isEmpty ? .end : .text(text)
            case .text(let part):
                guard part.hasSuffix("\\") else { return .text(text + part) }
                text += part.dropLast().trimmed + " "
            }
        }
    }

    private func read(_ question: String) -> Line {
        pictureRows = 0
        return lines.read({ [self] in progressPrefix() + question }, waking: takeNews)
    }

    /// The answer to a question; nil where it was given up.
    private func ask(_ question: String, default answer: String?) -> String? {
        let hint = answer.map { " [\($0.printable)]" } ?? ""
        switch read("\(question)\(hint): ") {
        case .interrupted: return nil
        // The end of a file answers like an empty line; somebody who types has changed his mind.
        case .end: return lines.readsMeanwhile ? nil : answer ?? ""
        case .text(let text):
            let text = text.trimmed
            return text.isEmpty ? answer ?? "" : homeExpanded(text)
        }
    }

    // MARK: Making

    /// Asks what is missing and makes a video. All is asked before anything is refused, so that lines from a pipe stay
    /// in step.
    private func askAndMake(_ prompt: String) throws {
        var chosen = settings
        chosen[.prompt] = prompt
        if models.family.conditioning == .firstFrame {
            guard let image = ask("image", default: settings[.image] ?? base.image) else { return }
            chosen[.image] = image.isEmpty ? nil : image
        }
        let standard = numbered(path)
        guard let answer = ask("output", default: standard) else { return }
        let said = answer.isEmpty ? standard : try outputPath(answer)
        try submit(chosen, to: said)
        settings[.prompt] = chosen[.prompt]
        settings[.image] = chosen[.image]
        if said != standard { path = said }
    }

    /// Puts a video behind those that wait.
    func submit(_ chosen: Settings, to path: String) throws {
        let request = try checked(chosen, isComplete: true)
        let free = numbered(path)
        if free != path { say("\(path.printable) exists: this one becomes \(free.printable)") }
        let order = Order(
            request: request, models: models, path: free, crf: crf, adaptsToImage: adapts)
        jobs.append(Job(number: jobs.count + 1, order: order))
        makeNext()
    }

    /// The request of settings, where a model can carry it out.
    /// - Parameter isComplete: whether prompt and picture must be there.
    func checked(_ chosen: Settings, isComplete: Bool) throws -> Request {
        var request = try chosen.request(base, for: models.family)
        if models.family.conditioning != .firstFrame { request.image = nil }
        if let image = request.image, isComplete, !FilePath(image).exists {
            throw SettingError("no such file: \(image.printable)")
        }
        var tried = request
        if !isComplete, tried.prompt.trimmed.isEmpty { tried.prompt = "." }
        do {
            try tried.validate(for: models.family, hasConditioning: !isComplete)
        } catch {
            throw SettingError(error.message(naming: \.setting))
        }
        return request
    }

    // MARK: Names of files

    /// A name that no file has and no video will have.
    func numbered(_ path: String) -> String {
        let reserved = jobs.filter { $0.state == .waiting || $0.state == .running }.map(
            \.order.path)
        var (name, number) = (path, 1)
        while FilePath(name).exists || reserved.contains(name) {
            number += 1
            name = FilePath(path).withNumber(number) + (path.hasSuffix("/") ? "/" : "")
        }
        return name
    }

    /// What is said of an output as a path: without an ending that a video can have it is one of an .mp4.
    func outputPath(_ path: String) throws(SettingError) -> String {
        guard let last = FilePath(path).lastComponent, last.kind == .regular else {
            throw SettingError("output must be a name of a file or of a new folder, not '\(path)'")
        }
        return (try? VideoFormat(path: path)) == nil ? path + ".mp4" : path
    }

    // MARK: Telling

    /// A line about the work.
    func say(_ text: String) { show(text, on: .errors) }

    /// A line of the result.
    func tell(_ text: String) { show(text, on: .output) }

    private func show(_ text: String, on stream: TextStream) {
        pictureRows = 0
        let text = text.split(separator: "\n", omittingEmptySubsequences: false)
            .map { String($0).printable }.joined(separator: "\r\n")
        if lines.readsMeanwhile {
            lines.print(text + "\r\n")
        } else {
            line.end()
            stream.write(text.replacing("\r\n", with: "\n") + "\n")
        }
    }
}

/// With the home folder for `~`.
func homeExpanded(_ path: String) -> String {
    guard path == "~" || path.hasPrefix("~/"), let home = getenv("HOME") else { return path }
    return String(cString: home) + path.dropFirst()
}

extension FilePath {
    /// `a.mp4`, 2 → `a-2.mp4`
    func withNumber(_ number: Int) -> String {
        guard let last = lastComponent else { return "\(string)-\(number)" }
        let ending = last.extension.map { "." + $0 } ?? ""
        return removingLastComponent().appending("\(last.stem)-\(number)\(ending)").string
    }
}

/// Files whose names begin with a text; folders end in a slash.
private func files(beginning text: String) -> [String] {
    let slash = text.lastIndex(of: "/").map { text.index(after: $0) } ?? text.startIndex
    let (folder, name) = (String(text[..<slash]), text[slash...])
    guard let stream = opendir(folder.isEmpty ? "." : homeExpanded(folder)) else { return [] }
    defer { closedir(stream) }
    var found: [String] = []
    while let entry = readdir(stream) {
        let file = withUnsafeBytes(of: entry.pointee.d_name) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        guard file.hasPrefix(name), !file.hasPrefix(".") || name.hasPrefix(".") else { continue }
        let isFolder = FilePath(homeExpanded(folder) + file).isFolder
        found.append(folder + file + (isFolder ? "/" : ""))
    }
    return found.sorted()
}

/// What `body` returns, called on a thread of its own, which may wait for as long as it likes.
func onThread<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
    await withCheckedContinuation { continuation in
        guard let thread = HostThread({ continuation.resume(returning: body()) }) else {
            fatalError("the terminal: the system starts no further thread")
        }
        thread.detach()
    }
}

extension RequestError.Field {
    /// The setting of the field.
    var setting: String {
        switch self {
        case .prompt: Setting.prompt.rawValue
        case .negativePrompt: Setting.negativePrompt.rawValue
        case .image: Setting.image.rawValue
        case .width: "the width (resolution)"
        case .height: "the height (resolution)"
        case .frames: Setting.frames.rawValue
        case .framesPerSecond: Setting.fps.rawValue
        case .samples: Setting.samples.rawValue
        case .steps: Setting.steps.rawValue
        case .sigmaMax: Setting.sigmaMax.rawValue
        case .shift: Setting.shift.rawValue
        case .guidance: Setting.guidance.rawValue
        case .topK: Setting.topK.rawValue
        case .loras: Setting.lora.rawValue
        case .boundary: Setting.boundary.rawValue
        case .linears: Setting.linears.rawValue
        case .textEmbedding, .conditioning, .latents: rawValue
        }
    }
}
