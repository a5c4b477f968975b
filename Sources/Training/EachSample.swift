/// The host's part of a batch, on all cores.

internal import Dispatch

/// What `body` makes of 0..<count, in that order.
func eachSample<T>(_ count: Int, _ body: (Int) -> T) -> [T] {
    guard count > 1 else { return (0..<count).map(body) }
    return withoutActuallyEscaping(body) { body in
        [T](unsafeUninitializedCapacity: count) { out, initialized in
            nonisolated(unsafe) let (out, run) = (out.baseAddress!, body)
            // Every index once, each with a place of its own.
            DispatchQueue.concurrentPerform(iterations: count) { index in
                (out + index).initialize(to: run(index))
            }
            initialized = count
        }
    }
}
