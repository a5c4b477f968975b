// Typed launches: a kernel knows the types of its arguments.

internal import CDrivers
internal import Ground
import Tensors

/// A kernel of the device, its arguments' types in order. Get one from ``Context/kernel(_:of:)``:
///
///     let gelu: Kernel<DevicePointer, DevicePointer, Int64> = context.kernel("gelu<bf16>", of: unit)
///     gelu(.elements(count, perThread: 8), output, input, Int64(count))
///
/// The Swift types must be as large as the CUDA ones: `Int32` for int, `Int64` for long long, `Float`,
/// ``DevicePointer`` for any pointer, ``TensorMap`` for `const __grid_constant__ TensorMap`, and any
/// `BitwiseCopyable` struct whose layout is the CUDA struct's.
public struct Kernel<each Argument: BitwiseCopyable> {
    let name: String
    /// nil where the kernel could not be compiled or loaded; the device knows why.
    let function: Function?
    let context: Context

    /// Launches on the context's current stream. A grid without blocks is no launch. Does nothing
    /// after a failure; its own failure shows at the next synchronisation.
    public func callAsFunction(_ shape: LaunchShape, _ argument: repeat each Argument) {
        guard let function, context.device.failure == nil, shape.grid.count > 0 else { return }
        let scratch = context.arguments
        scratch.reset()
        for value in repeat each argument { scratch.append(value) }
        context.launch(function, shape, scratch)
    }
}

/// Copies of the arguments of the launch in progress and their addresses, as the driver wants them.
/// One per context, reused: a launch allocates nothing.
final class LaunchArguments {
    private let bytes = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
    let addresses = UnsafeMutablePointer<UnsafeMutableRawPointer?>.allocate(capacity: 128)
    private var used = 0
    private var count = 0

    deinit {
        bytes.deallocate()
        addresses.deallocate()
    }

    func reset() {
        used = 0
        count = 0
    }

    func append<Value: BitwiseCopyable>(_ value: Value) {
        // A tensor map wants 64 in the kernel's own parameter space; here 16 serves every type.
        let start = (used + 15) & ~15
        ensure(start + MemoryLayout<Value>.size <= 4096 && count < 128, "too many arguments")
        (bytes + start).storeBytes(of: value, as: Value.self)
        addresses[count] = bytes + start
        used = start + MemoryLayout<Value>.size
        count += 1
    }
}
