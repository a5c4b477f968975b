// A sequence of launches, recorded once and queued again with one call.

internal import CDrivers

/// A captured graph. It replays the same kernels on the same addresses: buffers that it reads or
/// writes and that were made outside the capture must be kept by the caller; those made inside are
/// the graph's own until it is gone.
public final class Graph {
    private let context: Context
    private let executable: CUgraphExec
    private let held: [Arena.Block]

    fileprivate init(_ context: Context, _ executable: CUgraphExec, _ held: [Arena.Block]) {
        self.context = context
        self.executable = executable
        self.held = held
    }

    deinit {
        _ = context.device.cuda.cuGraphExecDestroy(executable)
        context.memory.release(held)
    }

    /// Queues the whole graph on the context's stream.
    public func launch() {
        let device = context.device
        guard device.failure == nil else { return }
        device.lastKernel = "graph"
        device.check(
            device.cuda.cuGraphLaunch(executable, context.stream.handle), "cuGraphLaunch")
    }
}

extension Context {
    /// Records what `operations` queue, without running it. They must not synchronise or copy to or
    /// from pageable memory; kernels they use should have run once before.
    public func capture(_ operations: () -> Void) throws(CUDAError) -> Graph {
        try synchronize()
        let cuda = device.cuda
        device.check(
            cuda.cuStreamBeginCapture(
                stream.handle, Int32(CU_STREAM_CAPTURE_MODE_RELAXED)),
            "cuStreamBeginCapture")
        memory.beginRecording()
        operations()
        let held = memory.endRecording()
        var graph: CUgraph?
        var executable: CUgraphExec?
        device.check(cuda.cuStreamEndCapture(stream.handle, &graph), "cuStreamEndCapture")
        if let graph {
            device.check(
                cuda.cuGraphInstantiate(&executable, graph, 0), "cuGraphInstantiate")
            _ = cuda.cuGraphDestroy(graph)
        }
        guard device.failure == nil, let executable else {
            memory.release(held)
            throw device.takeFailure()
                ?? CUDAError(
                    code: 1, name: "CUDA_ERROR_INVALID_VALUE", text: "no graph was recorded",
                    call: "capture")
        }
        return Graph(self, executable, held)
    }
}
