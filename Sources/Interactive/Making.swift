/// Videos on their way: one is made at a time, the others wait; what is heard of them is shown.

import Ground
import Media
import Runs
import Sessions
import Terminal

extension Conversation {
    var running: Int? { jobs.firstIndex { $0.state == .running } }
    var isBusy: Bool { jobs.contains { $0.state == .running || $0.state == .waiting } }

    /// Begins the next video, unless one is being made.
    func makeNext() {
        guard running == nil, let index = jobs.firstIndex(where: { $0.state == .waiting }) else {
            return
        }
        let (order, number) = (jobs[index].order, jobs[index].number)
        let (maker, inbox) = (maker, inbox)
        let task = Task {
            do {
                let made = try await maker.make(order) { inbox.post(.event(number, $0)) }
                inbox.post(.made(number, made))
            } catch {
                inbox.post(
                    .failed(
                        number, message: maker.message(of: error),
                        isCancelled: error is CancellationError))
            }
        }
        jobs[index].state = .running
        jobs[index].task = task
        jobs[index].began = .now
        interruption.setRunning(task)
    }

    /// Until nothing is being made and nothing waits.
    func waitForVideos() {
        while isBusy {
            _ = inbox.wait()
            _ = takeNews()
            if let status { line.show { status($0) } }
        }
        line.end()
    }

    /// Ends what is being made and what waits, and waits until it has ended.
    func finish() {
        let left = jobs.indices.filter { jobs[$0].state == .waiting }
        for index in left { jobs[index].state = .cancelled }
        if running != nil || !left.isEmpty {
            say("\(left.count + (running == nil ? 0 : 1)) unfinished: not made")
        }
        if let index = running { jobs[index].task?.cancel() }
        waitForVideos()
    }

    // MARK: News

    /// Takes what has happened.
    /// - Returns: whether the line that is being read is given up.
    func takeNews() -> Bool {
        var isInterrupted = false
        for news in inbox.take() {
            switch news {
            case .interrupt: isInterrupted = true
            case .loaded(let result): loaded = result
            case .event(let number, let event): take(event, &jobs[number - 1])
            case .made(let number, let made):
                interruption.setRunning(nil)
                let index = number - 1
                jobs[index].state = .done
                (jobs[index].files, jobs[index].seconds) = (made.files, made.seconds)
                jobs[index].order.request = made.request
                let names = made.files.map(\.printable).joined(separator: ", ")
                tell(
                    "\(number): wrote \(names), seed \(made.request.seed), \(describe(seconds: made.seconds))"
                )
                makeNext()
            case .failed(let number, let message, let isCancelled):
                interruption.setRunning(nil)
                jobs[number - 1].state = isCancelled ? .cancelled : .failed
                say("\(number): \(isCancelled ? "cancelled" : message)")
                makeNext()
            }
        }
        return isInterrupted
    }

    private func take(_ event: SessionEvent, _ job: inout Job) {
        switch event {
        case .progress(let fraction): job.fraction = fraction
        case .run(.stageStarted(let stage)): job.stage = stage.title
        case .run(.notice(let notice)):
            if job.told.insert(notice.message).inserted { say("note: \(notice.message)") }
        case .preview(_, let image): showPicture(image)
        case .run, .wrote: break
        }
    }

    /// A picture, in the place of the last one where nothing has been written since.
    private func showPicture(_ image: RGBImage) {
        guard TextStream.output.movesLines else { return }
        let kind = settings[.preview].flatMap(PictureKind.init) ?? .ofTerminal
        let columns = (TextStream.output.columns ?? 80) - 1
        let (text, rows) = kind.text(image, columns: columns)
        guard rows > 0 else { return }
        let up = pictureRows > 0 ? "\u{1B}[\(pictureRows)A\r\u{1B}[J" : ""
        if lines.readsMeanwhile {
            lines.print(up + text)
        } else {
            line.end()
            TextStream.output.write(up + text)
        }
        pictureRows = rows
    }

    // MARK: Progress

    /// What is being made and how far it is, in some columns; nil where nothing is.
    var status: ((_ columns: Int) -> String)? {
        guard let index = running else { return nil }
        let job = jobs[index]
        let elapsed = (ContinuousClock.now - job.began) / .seconds(1)
        let left =
            job.fraction > 0.05 ? (elapsed / job.fraction - elapsed).rounded() : nil
        let waiting = jobs.count { $0.state == .waiting }
        let more = waiting > 0 ? " (+\(waiting))" : ""
        return {
            progressBar(
                "\(job.number)\(more) \(job.stage)", job.fraction, secondsLeft: left, columns: $0)
        }
    }

    /// Stands before the line that is being typed. It changes at most ten times a second.
    func progressPrefix() -> String {
        guard lines.readsMeanwhile, let status else {
            shownProgress = nil
            return ""
        }
        if let shown = shownProgress, .now - shown.at < .milliseconds(100) { return shown.text }
        let text = "[" + status(max(12, (TextStream.output.columns ?? 80) / 2)) + "] "
        shownProgress = (text, .now)
        return text
    }
}
