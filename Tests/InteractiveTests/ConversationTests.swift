// A conversation with a maker that makes nothing: what is asked, what is ordered, what is said.

import Families
import Glibc
import Runs
import Sessions
import Synchronization
import Testing

@testable import Interactive

/// Writes down what is ordered.
private final class Recorder: VideoMaker {
    let orders = Mutex<[Order]>([])
    /// Videos of such prompts are made until they are cancelled.
    static let endless = "endless"

    func models(named name: String) throws -> ModelSet {
        switch name {
        case "test": return modelSet(.wan21)
        case "other": return modelSet(.wan22I2V)
        default: throw SettingError("no model \(name)")
        }
    }

    func make(_ order: Order, events: @escaping @Sendable (SessionEvent) -> Void) async throws
        -> MadeVideo
    {
        orders.withLock { $0.append(order) }
        events(.progress(0.5))
        if order.request.prompt == Self.endless { try await Task.sleep(for: .seconds(3600)) }
        return MadeVideo(files: [order.path], seconds: 1, request: order.request)
    }

    func load(_ path: String) async throws -> LoadedRun {
        var request = Request("a loaded one", for: .wan21)
        request.seed = 99
        return LoadedRun(request: request, models: modelSet(.wan21), crf: 20)
    }

    func message(of error: any Error) -> String { "\(error)" }
}

/// Lines that are there, each read when the video before it is made; prints are kept.
private final class Script: LineSource {
    let readsMeanwhile = true
    private var lines: [String]
    private let inbox: Mailbox<News>
    var questions: [String] = []
    var printed: [String] = []
    var isBusy: () -> Bool = { false }
    /// Called when a line is read, with its number.
    var reading: (Int) -> Void = { _ in }

    init(_ lines: [String], _ inbox: Mailbox<News>) { (self.lines, self.inbox) = (lines, inbox) }

    func read(_ prompt: () -> String, waking wake: () -> Bool) -> Line {
        reading(questions.count)
        while isBusy() {
            _ = inbox.wait()
            if wake() { return .interrupted }
        }
        questions.append(prompt())
        return lines.isEmpty ? .end : .text(lines.removeFirst())
    }

    func remember(_ line: String) {}
    func print(_ text: String) { printed.append(text) }
}

private func modelSet(_ family: Family) -> ModelSet {
    ModelSet(
        name: "test", family: family, transformer: "t", textEncoder: "e", tokenizer: "k", vae: "v")
}

@Suite("a conversation")
struct ConversationTests {
    private let folder: String = {
        var template = Array("/tmp/turbodiffusion-conversation-XXXXXX".utf8CString)
        return String(cString: mkdtemp(&template))
    }()

    private struct Held: Sendable {
        var orders: [Order]
        var questions, printed: [String]
        var states: [Conversation.Job.State]
    }

    /// On a thread of its own, as it waits for videos that the thread pool makes.
    /// - Parameter reading: called when a line is read, with its number.
    private func hold(
        _ lines: [String], family: Family = .wan21,
        reading: @escaping @Sendable (Int, Conversation) -> Void = { _, _ in }
    ) async -> Held {
        let path = "\(folder)/video.mp4"
        return await onThread {
            let (inbox, recorder) = (Mailbox<News>(), Recorder())
            var options = ConversationOptions(
                models: modelSet(family), request: Request("", for: family))
            options.path = path
            let script = Script(lines, inbox)
            let conversation = Conversation(
                options, recorder, inbox: inbox, interruption: .init(inbox), lines: script)
            script.isBusy = { [unowned conversation] in conversation.isBusy }
            script.reading = { [unowned conversation] in reading($0, conversation) }
            conversation.run()
            return Held(
                orders: recorder.orders.withLock { $0 }, questions: script.questions,
                printed: script.printed, states: conversation.jobs.map(\.state))
        }
    }

    private func touch(_ path: String) {
        close(open(path, O_CREAT | O_WRONLY, 0o600))
    }

    @Test("the original's commands: a prompt, its output, a line that goes on, settings that last")
    func original() async throws {
        let held = await hold([
            "/show", "/set num_steps 2", "a ball", "", "a red \\", "cube", "\(folder)/cube",
            "/reset",
            "a lamp", "", "/quit", "never read",
        ])
        #expect(held.orders.map(\.request.prompt) == ["a ball", "a red cube", "a lamp"])
        #expect(held.orders.map(\.request.sampling.steps) == [2, 2, 4])
        #expect(held.orders.first?.path == "\(folder)/video.mp4")
        #expect(held.orders.dropFirst().first?.path == "\(folder)/cube.mp4")
        #expect(held.questions.filter { $0.hasPrefix("output") }.count == 3)
        #expect(held.questions.contains("… "))
    }

    @Test(
        "image to video asks for the picture too, and remembers it; nothing is refused before all is asked"
    )
    func picture() async throws {
        let image = "\(folder)/cat.png"
        touch(image)
        let held = await hold(
            [
                "it blinks", "\(folder)/none.png", "", "it blinks", image, "", "it sleeps", "", "",
                "/quit",
            ],
            family: .wan22I2V)
        #expect(held.orders.map(\.request.image) == [image, image])
        #expect(held.orders.map(\.request.prompt) == ["it blinks", "it sleeps"])
        #expect(held.printed.joined().contains("no such file: \(folder)/none.png"))
        #expect(held.questions.contains("image [\(image)]: "))
    }

    @Test("what is wrong is told, leaves all as it was, and the conversation goes on")
    func wrong() async throws {
        let held = await hold([
            "/set num_steps 9", "/set num_steps many", "/set colour red", "/sett", "/set seed",
            "/set num_frames 8",
            "/set width 100", "/set resolution 100x100", "/set lora none.safetensors",
            "/set ode perhaps", "/nothing",
            "/set output ./", "/again", "/vary 0", "/cancel", "/cancel 7", "/load none",
            "/set model none", "a ball",
            "",
        ])
        #expect(held.orders.count == 1)
        #expect(held.orders.first?.request == Request("a ball", for: .wan21))
        let said = held.printed.joined()
        for text in [
            "num_steps must be 1 to 4", "not 'many'", "no setting 'colour'", "did you mean /set?",
            "4n + 1",
            "a multiple of 16", "no such file: none.safetensors", "on or off",
            "no command /nothing",
            "nothing has been asked for yet", "a number from 1", "nothing is being made",
            "no model none", "output must be",
        ] { #expect(said.contains(text), "\(text) in \(said)") }
        // A line for each wrong one, and one for the video.
        #expect(held.printed.count >= 17)
    }

    @Test("every setting changes the next request")
    func settings() async throws {
        let lora = "\(folder)/style.safetensors"
        touch(lora)
        let held = await hold([
            "/set seed 5", "/set size 832x480", "/set frames 9", "/set topk 0.3", "/set ode on",
            "/set fps 24",
            "/set attention original", "/set precision f32", "/set linears int8",
            "/set lora \(lora):0.5",
            "/set sigma_max 100", "/set crf 20", "/set prompt a whale", "/again",
            "/set sampler unipc", "/set guidance 3", "/set shift 2", "/set num_steps 20",
            "/set negative_prompt blur",
            "/again",
        ])
        var expected = Request("a whale", for: .wan21)
        (expected.seed, expected.width, expected.height, expected.frames) = (5, 832, 480, 9)
        expected.framesPerSecond = 24
        expected.arithmetic = Arithmetic(
            precision: .f32, linears: .int8, attention: .original, topK: 0.3)
        expected.sampling = .distilled(.init(steps: 4, sigmaMax: 100, ode: true))
        expected.loras = [RequestedLoRA(lora, strength: 0.5)]
        #expect(held.orders.first?.request == expected)
        #expect(held.orders.first?.crf == 20)
        #expect(held.orders.last?.request.sampling.steps == 20)
        #expect(held.orders.last?.request.negativePrompt == "blur")
        #expect(held.orders.last?.request.sampling.guidance == 3)
    }

    @Test("again is the same request, vary is another seed, each under its own name")
    func again() async throws {
        let held = await hold([
            "/set seed 3", "a ball", "", "/again", "/vary 3", "/set seed 4", "/again 1", "/history",
            "/queue a cube",
        ])
        try #require(held.orders.count == 7)
        #expect(held.orders[1].request == held.orders[0].request)
        #expect(Set(held.orders[2...4].map(\.request.seed)).count == 3)
        #expect(held.orders[5].request == held.orders[0].request)
        #expect(held.orders[6].request.prompt == "a cube")
        #expect(held.orders[6].request.seed == 4)
        #expect(held.printed.joined().contains("6: \(folder)/video"))
    }

    @Test("a name that a file has, or that a video will have, gets a number")
    func names() async throws {
        touch("\(folder)/video.mp4")
        touch("\(folder)/video-2.mp4")
        let held = await hold(["a ball", "", "a cube", "\(folder)/video.mp4"])
        #expect(held.orders.map(\.path) == ["\(folder)/video-3.mp4", "\(folder)/video-3.mp4"])
        #expect(held.questions.contains("output [\(folder)/video-3.mp4]: "))
        #expect(held.printed.joined().contains("exists"))
    }

    @Test("Ctrl-C ends the video that is being made, and nothing else", .timeLimit(.minutes(1)))
    func interrupted() async throws {
        let taken = Mutex<[Bool]>([])
        let held = await hold([Recorder.endless, "", "a ball", ""]) {
            number, conversation in
            // While the third line is waited for the first video is being made.
            if number == 2 {
                let isTaken = conversation.interruption.interrupt()
                taken.withLock { $0.append(isTaken) }
            }
        }
        #expect(taken.withLock { $0 } == [true])
        #expect(held.orders.map(\.request.prompt) == [Recorder.endless, "a ball"])
        #expect(held.states == [.cancelled, .done])
    }

    @Test("settings that were saved are those that are loaded, from a text and from a video")
    func files() async throws {
        let file = "\(folder)/settings"
        let held = await hold([
            "/set seed 12", "/set steps 3", "/set prompt a tree", "/save \(file)", "/reset",
            "/load \(file)", "/again",
            "/save \(file)", "/load \(folder)", "/again",
        ])
        #expect(held.orders.first?.request.prompt == "a tree")
        #expect(held.orders.first?.request.seed == 12)
        #expect(held.orders.first?.request.sampling.steps == 3)
        #expect(held.orders.last?.request.prompt == "a loaded one")
        #expect(held.orders.last?.request.seed == 99)
        #expect(held.orders.last?.crf == 20)
    }

    @Test("another model keeps what was set and has its own values for the rest")
    func model() async throws {
        let held = await hold(["/set seed 8", "/set model other", "it moves", folder, ""])
        #expect(held.orders.first?.models.family == .wan22I2V)
        #expect(held.orders.first?.request.seed == 8)
        #expect(held.orders.first?.request.width == Family.wan22I2V.defaults.width)
    }
}
