// Kernels with typed arguments.

internal import CDrivers
internal import Ground
import Tensors

/// A kernel of the device, with the types of its arguments. Get one from ``Context/kernel(_:of:)``:
///
///     let gelu: Kernel<DevicePointer, DevicePointer, Int64> = context.kernel("gelu<bf16>", of: unit)
///     gelu(.elements(count, perThread: 8), output, input, Int64(count))
///
/// The Swift types must have the size of the CUDA ones: `Int32` for int, `Int64` for long long, `Float` for float,
/// ``DevicePointer`` for any pointer, ``TensorMap`` for `const __grid_constant__ TensorMap`, and for a struct any
/// `BitwiseCopyable` struct of the same layout.
public struct Kernel<each Argument: BitwiseCopyable> {
    let name: String
    /// nil if the kernel could not be compiled or loaded; the device's failure says why.
    let function: Function?
    let context: Context

    /// Launches the kernel in the context's current stream. Does nothing if the grid is empty, or after a failure. A
    /// failure of the launch is thrown by the next synchronisation.
    public func callAsFunction(_ shape: LaunchShape, _ argument: repeat each Argument) {
        guard let function, context.device.failure == nil, shape.grid.count > 0 else { return }
        let scratch = context.arguments
        scratch.reset()
        for value in repeat each argument { scratch.append(value) }
        context.launch(function, shape, scratch)
    }
}

/// The arguments of the current launch and their addresses, as the driver takes them. Each context has one and reuses
/// it, so that a launch allocates no memory.
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
        // Only in the kernel's own parameter space must a tensor map be aligned to 64; here 16 is enough for every
        // type.
        let start = (used + 15) & ~15
        ensure(start + MemoryLayout<Value>.size <= 4096 && count < 128, "too many arguments")
        (bytes + start).storeBytes(of: value, as: Value.self)
        addresses[count] = bytes + start
        used = start + MemoryLayout<Value>.size
        count += 1
    }
}
