/// oneDNN, opened at run time, for single-threaded matrix products.

internal import CDrivers
internal import Glibc
internal import Ground
internal import SystemPackage
import Tensors

/// The library. Its functions may be called from any thread.
final class OneDNN: @unchecked Sendable {
    /// The library, opened once per process, or why it cannot be opened.
    static let shared: Result<OneDNN, OneDNNUnavailable> = Result { () throws(OneDNNUnavailable) in
        try OneDNN()
    }

    let functions: onednn
    let engine: dnnl_engine_t
    let version: String

    private init() throws(OneDNNUnavailable) {
        guard let library = Self.open() else {
            throw OneDNNUnavailable(reason: String(cString: dlerror()))
        }
        // The loader fills every field, or names the first that it cannot find.
        let table = UnsafeMutablePointer<onednn>.allocate(capacity: 1)
        defer { table.deallocate() }
        if let missing = onednn_load(library, table) {
            throw OneDNNUnavailable(reason: "it has no \(String(cString: missing))")
        }
        functions = table.pointee
        let number = functions.dnnl_version().pointee
        version = "\(number.major).\(number.minor)"
        var engine: dnnl_engine_t?
        guard number.major == 2,
            functions.dnnl_engine_create(&engine, Int32(DNNL_CPU), 0) == DNNL_SUCCESS, let engine
        else { throw OneDNNUnavailable(reason: "version \(version) does not work here") }
        self.engine = engine
    }

    /// Where the loader looks, or else what was installed with this program: Python's onednn-cpu-gomp brings it.
    private static func open() -> UnsafeMutableRawPointer? {
        if let library = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL) { return library }
        guard let file = Installation.prefix?.appending("lib/libdnnl.so.2"), file.isRegularFile,
            file.changeableByOthers == nil
        else { return nil }
        return dlopen(file.string, RTLD_NOW | RTLD_LOCAL)
    }

    /// Makes the calls of this thread use this thread alone, because the work is already divided among our own threads.
    func useOneThread() { functions.omp_set_num_threads?(1) }
}

/// Why oneDNN cannot be used.
struct OneDNNUnavailable: Error, CustomStringConvertible {
    let reason: String
    var description: String {
        "oneDNN 2 (libdnnl.so.2) cannot be opened: \(reason); "
            + "install it with `apt-get install libdnnl2`"
    }
}

/// x W^T for 64 rows of x at a time, with W in the layout that the library prefers.
final class OneDNNProduct {
    /// Rows of x and of the result in one call. Fewer rows have to be copied and padded to 64.
    static let rows = 64

    /// The type of x and of the weight.
    let dtype: DType
    let inner, columns: Int
    private let library: OneDNN
    private let primitive: dnnl_primitive_t
    private let source, weights, result, scratchpad: dnnl_memory_desc_t
    private let packed: Storage
    /// Bytes of working memory that `run` needs.
    let scratchBytes: Int

    /// nil if the library has no such product. weight: [columns, inner], f32 or bf16; the result is f32.
    init?(_ weight: Tensor, _ memory: MemoryPool) {
        let (columns, inner, dtype) = (weight.shape[0], weight.shape[1], weight.dtype)
        guard let library = try? OneDNN.shared.get() else { return nil }
        library.useOneThread()
        let (functions, engine) = (library.functions, library.engine)
        let type = dtype == .bf16 ? DNNL_BF16 : DNNL_F32
        func describe(_ rows: Int, _ columns: Int, _ type: UInt32, _ tag: UInt32)
            -> dnnl_memory_desc_t
        {
            var description = dnnl_memory_desc_t()
            let extents = [Int64(rows), Int64(columns)]
            _ = functions.dnnl_memory_desc_init_by_tag(
                &description, 2, extents, Int32(type), Int32(tag))
            return description
        }
        var source = describe(Self.rows, inner, UInt32(type), UInt32(DNNL_AB))
        var anyWeights = describe(inner, columns, UInt32(type), UInt32(DNNL_ANY))
        var givenWeights = describe(inner, columns, UInt32(type), UInt32(DNNL_BA))
        var result = describe(
            Self.rows, columns, UInt32(DNNL_F32), UInt32(DNNL_AB))
        var operation = dnnl_matmul_desc_t()
        var attributes: dnnl_primitive_attr_t?
        var description: dnnl_primitive_desc_t?
        var primitive: dnnl_primitive_t?
        guard functions.dnnl_primitive_attr_create(&attributes) == DNNL_SUCCESS, let attributes
        else {
            return nil
        }
        defer { _ = functions.dnnl_primitive_attr_destroy(attributes) }
        guard
            functions.dnnl_primitive_attr_set_scratchpad_mode(
                attributes, Int32(DNNL_SCRATCHPAD_USER)) == DNNL_SUCCESS,
            functions.dnnl_matmul_desc_init(&operation, &source, &anyWeights, nil, &result)
                == DNNL_SUCCESS,
            functions.dnnl_primitive_desc_create(&description, &operation, attributes, engine, nil)
                == DNNL_SUCCESS, let description
        else { return nil }
        defer { _ = functions.dnnl_primitive_desc_destroy(description) }
        guard
            let chosen = functions.dnnl_primitive_desc_query_md(
                description, Int32(DNNL_QUERY_WEIGHTS), 0),
            let scratchpad = functions.dnnl_primitive_desc_query_md(
                description, Int32(DNNL_QUERY_SCRATCHPAD), 0),
            functions.dnnl_primitive_create(&primitive, description) == DNNL_SUCCESS, let primitive
        else { return nil }
        (self.library, self.primitive) = (library, primitive)
        (self.dtype, self.inner, self.columns) = (dtype, inner, columns)
        (self.source, self.result) = (source, result)
        weights = chosen.pointee
        self.scratchpad = scratchpad.pointee
        scratchBytes = functions.dnnl_memory_desc_get_size(scratchpad)
        packed = memory.storage(byteCount: functions.dnnl_memory_desc_get_size(chosen))

        var reordering: dnnl_primitive_desc_t?
        var reorder: dnnl_primitive_t?
        guard
            functions.dnnl_reorder_primitive_desc_create(
                &reordering, &givenWeights, engine, chosen, engine, nil) == DNNL_SUCCESS,
            let reordering
        else { return nil }
        defer { _ = functions.dnnl_primitive_desc_destroy(reordering) }
        guard functions.dnnl_primitive_create(&reorder, reordering) == DNNL_SUCCESS, let reorder
        else {
            return nil
        }
        defer { _ = functions.dnnl_primitive_destroy(reorder) }
        execute(
            reorder,
            [
                (DNNL_ARG_FROM, givenWeights, weight.hostAddress),
                (DNNL_ARG_TO, weights, packed.hostPointer!),
            ])
    }

    deinit { _ = library.functions.dnnl_primitive_destroy(primitive) }

    /// x: [64, inner] → result: f32 or i32 [64, columns]; scratch: `scratchBytes` bytes, aligned to 64
    func run(
        _ x: UnsafeRawPointer, into result: UnsafeMutableRawPointer,
        scratch: UnsafeMutableRawPointer
    ) {
        library.useOneThread()
        execute(
            primitive,
            [
                (DNNL_ARG_SRC, source, UnsafeMutableRawPointer(mutating: x)),
                (DNNL_ARG_WEIGHTS, weights, packed.hostPointer!),
                (DNNL_ARG_DST, self.result, result), (DNNL_ARG_SCRATCHPAD, scratchpad, scratch),
            ])
    }

    private func execute(
        _ primitive: dnnl_primitive_t,
        _ arguments: [(Int, dnnl_memory_desc_t, UnsafeMutableRawPointer)]
    ) {
        let functions = library.functions
        var stream: dnnl_stream_t?
        var status = functions.dnnl_stream_create(
            &stream, library.engine, UInt32(DNNL_STREAM_DEFAULT))
        let list = arguments.map { argument, description, data in
            var memory: dnnl_memory_t?
            var description = description
            status |= functions.dnnl_memory_create(&memory, &description, library.engine, data)
            return dnnl_exec_arg_t(arg: Int32(argument), memory: memory!)
        }
        status |= functions.dnnl_primitive_execute(primitive, stream!, Int32(list.count), list)
        for argument in list { _ = functions.dnnl_memory_destroy(argument.memory) }
        _ = functions.dnnl_stream_destroy(stream!)
        ensure(status == DNNL_SUCCESS, "oneDNN: a product of \(inner) x \(columns) failed")
    }
}
