/// A closed pickle interpreter: it builds plain values and tensors, and calls nothing.
///
/// A pickle is a program that may import and call anything. Here it may only import the few names
/// in `PickleGlobal`; any other name is an error. Containers are kept in flat tables, so that neither
/// reading nor freeing a nested value recurses, and shared values are never walked as a tree.

import Ground
import Tensors

/// A value on the pickle machine's stack; containers are indices into the machine's tables.
enum PickleValue {
    case none
    case bool(Bool)
    case int(Int)
    /// An integer of more than 64 bits: its little-endian two's complement bytes.
    case bigInt(Range<Int32>)
    case float(Double)
    /// Text or bytes, left where they are in the file.
    case text(Range<Int32>)
    case bytes(Range<Int32>)
    case list(Int32)
    case tuple(Int32)
    case dict(Int32)
    case global(PickleGlobal)
    case storage(Int32)
    case tensor(Int32)
    /// A record of one of the known classes.
    case object(Int32)
    /// Something harmless that no tensor needs: a set, a device, a dtype inside a configuration.
    case opaque
}

/// A storage as the pickle describes it, before the container has said where its bytes are.
struct PickledStorage {
    /// nil for untyped storages, which count bytes, and for unsupported types.
    let dtype: DType?
    /// The name of an unsupported type.
    let foreign: String?
    let key: Range<Int32>
    /// Elements of `dtype`, or bytes.
    let count: Int
}

/// A tensor as the pickle describes it: a view of a storage.
struct PickledTensor {
    let storage: Int32
    /// nil for an unsupported type.
    let dtype: DType?
    /// The type's name.
    let type: String
    let shape: [Int]
    let strides: [Int]
    /// In elements.
    let offset: Int
}

/// An object of one of the known record classes.
struct PickledObject {
    let record: PickleGlobal.Record
    /// A dictionary of its fields, or a tuple.
    var state: PickleValue
}

/// Reads one pickle. Memory and time are limited in proportion to the size of the file.
struct PickleMachine {
    static let maximumStack = 1 << 17
    static let maximumMarks = 1 << 12
    static let maximumMemo = 1 << 18
    static let maximumValues = 1 << 20

    let file: MappedFile
    var reader: ByteReader
    private var stack: [PickleValue] = []
    private var marks: [Int] = []
    private var memo: [Int: PickleValue] = [:]
    /// How many values have been put into containers.
    private var stored = 0

    /// Elements of lists and tuples.
    private(set) var sequences: [[PickleValue]] = []
    private(set) var dictionaries: [[(key: PickleValue, value: PickleValue)]] = []
    private(set) var storages: [PickledStorage] = []
    private(set) var tensors: [PickledTensor] = []
    private(set) var objects: [PickledObject] = []

    /// - Parameters:
    ///   - bytes: the pickle and whatever follows it; `reader.position` is the end of the pickle
    ///     after `run`.
    init(_ file: MappedFile, _ bytes: UnsafeRawBufferPointer, at position: Int = 0) {
        self.file = file
        reader = ByteReader(bytes, at: position)
    }

    // MARK: Reading values

    /// The text of a value; nil if it is not text, or too long for a name (a shared text may be asked for
    /// many times).
    func text(_ value: PickleValue) -> String? {
        guard case .text(let range) = value, range.count <= TensorFile.longestName else {
            return nil
        }
        return reader.text(Int(range.lowerBound)..<Int(range.upperBound))
    }

    func raw(_ range: Range<Int32>) -> UnsafeRawBufferPointer {
        reader.slice(Int(range.lowerBound)..<Int(range.upperBound))
    }

    func integers(_ value: PickleValue) -> [Int]? {
        guard case .tuple(let index) = value else { return nil }
        var integers: [Int] = []
        for case .int(let integer) in sequences[Int(index)] { integers.append(integer) }
        return integers.count == sequences[Int(index)].count ? integers : nil
    }

    // MARK: The machine

    func fail(_ reason: String) -> CheckpointError {
        file.fail("pickle byte \(reader.position): \(reason)")
    }

    /// Runs one pickle up to its STOP and returns its value.
    mutating func run() throws(CheckpointError) -> PickleValue {
        stack = []
        marks = []
        memo = [:]
        guard reader.bytes.count <= Int(Int32.max) else { throw fail("the pickle is too long") }
        while true {
            guard let code = reader.integer(UInt8.self) else { throw fail("it ends without STOP") }
            if code == UInt8(ascii: ".") { return try pop() }
            try step(code)
            guard stack.count <= Self.maximumStack, marks.count <= Self.maximumMarks else {
                throw fail("nested too deeply")
            }
        }
    }

    private mutating func step(_ code: UInt8) throws(CheckpointError) {
        switch code {
        case 0x80:
            guard let version = reader.integer(UInt8.self), (2...5).contains(version) else {
                throw fail("only pickle protocols 2 to 5 are read")
            }
        case 0x95: _ = try take(8)  // FRAME: its length is not needed

        // Constants
        case UInt8(ascii: "N"): stack.append(.none)
        case 0x88: stack.append(.bool(true))
        case 0x89: stack.append(.bool(false))
        case UInt8(ascii: "K"): stack.append(.int(try number(UInt8.self)))
        case UInt8(ascii: "M"): stack.append(.int(try number(UInt16.self)))
        case UInt8(ascii: "J"): stack.append(.int(try number(Int32.self)))
        case 0x8A: try long(try number(UInt8.self))
        case 0x8B: try long(try number(Int32.self))
        case UInt8(ascii: "G"):
            guard let bits = reader.integer(UInt64.self) else { throw endOfFile }
            stack.append(.float(Double(bitPattern: bits.byteSwapped)))
        case UInt8(ascii: "X"): stack.append(.text(try take(try number(UInt32.self))))
        case 0x8C: stack.append(.text(try take(try number(UInt8.self))))
        case 0x8D: stack.append(.text(try take(try number(UInt64.self))))
        // Python 2's str, which legacy files use for keys
        case UInt8(ascii: "U"): stack.append(.text(try take(try number(UInt8.self))))
        case UInt8(ascii: "T"): stack.append(.text(try take(try number(Int32.self))))
        case UInt8(ascii: "C"): stack.append(.bytes(try take(try number(UInt8.self))))
        case UInt8(ascii: "B"): stack.append(.bytes(try take(try number(UInt32.self))))
        case 0x8E, 0x96: stack.append(.bytes(try take(try number(UInt64.self))))

        // Stack
        case UInt8(ascii: "("): marks.append(stack.count)
        case UInt8(ascii: "0"):
            if marks.last == stack.count { marks.removeLast() } else { _ = try pop() }
        case UInt8(ascii: "1"): _ = try popToMark()
        case UInt8(ascii: "2"): stack.append(try top())

        // Containers
        case UInt8(ascii: ")"): try tuple([])
        case 0x85, 0x86, 0x87: try tuple(try pop(Int(code - 0x84)))
        case UInt8(ascii: "t"): try tuple(try popToMark())
        case UInt8(ascii: "]"): try list([])
        case UInt8(ascii: "l"): try list(try popToMark())
        case UInt8(ascii: "}"): try dictionary([])
        case UInt8(ascii: "d"): try dictionary(try popToMark())
        case UInt8(ascii: "a"): try append(try pop(1))
        case UInt8(ascii: "e"): try append(try popToMark())
        case UInt8(ascii: "s"): try setItems(try pop(2))
        case UInt8(ascii: "u"): try setItems(try popToMark())
        case 0x8F: stack.append(.opaque)  // EMPTY_SET
        case 0x90:  // ADDITEMS
            _ = try popToMark()
            guard case .opaque = try top() else {
                throw fail("items for something that is not a set")
            }
        case 0x91:  // FROZENSET
            _ = try popToMark()
            stack.append(.opaque)

        // Memo
        case UInt8(ascii: "q"): try remember(try number(UInt8.self))
        case UInt8(ascii: "r"): try remember(try number(UInt32.self))
        case 0x94: try remember(memo.count)
        case UInt8(ascii: "h"): try recall(try number(UInt8.self))
        case UInt8(ascii: "j"): try recall(try number(UInt32.self))

        // Objects
        case UInt8(ascii: "c"):
            let module = try line()
            stack.append(.global(try global(module, try line())))
        case 0x93:
            let name = try pop()
            guard let module = text(try pop()), let name = text(name) else {
                throw fail("a global without a name")
            }
            stack.append(.global(try global(module, name)))
        case UInt8(ascii: "R"):
            let arguments = try pop()
            guard case .global(let function) = try pop(), case .tuple(let index) = arguments else {
                throw fail("a call of something that is not a function")
            }
            stack.append(try call(function, sequences[Int(index)]))
        case UInt8(ascii: "b"):
            let state = try pop()
            switch try top() {
            case .object(let index): objects[Int(index)].state = state
            // The state of an ordered dictionary is its attributes, such as _metadata.
            case .dict, .opaque: break
            default: throw fail("an object with a state")
            }
        case UInt8(ascii: "Q"): stack.append(try persistent(try pop()))
        case UInt8(ascii: "i"):  // INST: read only to name the class in the error
            let module = try line()
            _ = try global(module, try line())
            throw fail("an instance of a class")
        case 0x81:  // NEWOBJ
            _ = try pop()
            guard case .global(.record(let record)) = try pop() else {
                throw fail("an instance of a class")
            }
            try account(1)
            objects.append(PickledObject(record: record, state: .none))
            stack.append(.object(Int32(objects.count - 1)))
        case 0x92, UInt8(ascii: "o"): throw fail("an instance of a class")
        case 0x82, 0x83, 0x84: throw fail("an object of the extension registry")
        default: throw fail("the operation 0x\(String(code, radix: 16)) is not allowed")
        }
    }

    private var endOfFile: CheckpointError { fail("it ends in the middle of a value") }

    private mutating func number<T: FixedWidthInteger>(_ type: T.Type) throws(CheckpointError)
        -> Int
    {
        guard let value = reader.count(type) else { throw endOfFile }
        return value
    }

    private mutating func take(_ count: Int) throws(CheckpointError) -> Range<Int32> {
        guard let range = reader.take(count) else { throw endOfFile }
        return Int32(range.lowerBound)..<Int32(range.upperBound)
    }

    private mutating func long(_ count: Int) throws(CheckpointError) {
        let range = try take(count)
        guard range.count <= 8 else { return stack.append(.bigInt(range)) }
        var value = 0
        for (index, byte) in raw(range).enumerated() { value |= Int(byte) << (8 * index) }
        let unused = 64 - 8 * range.count
        stack.append(.int(range.isEmpty ? 0 : (value << unused) >> unused))
    }

    private mutating func line() throws(CheckpointError) -> String {
        let start = reader.position
        while let byte = reader.integer(UInt8.self) {
            if byte == 0x0A, let text = reader.text(start..<reader.position - 1) { return text }
            if reader.position - start > 512 { throw fail("a global with an endless name") }
        }
        throw endOfFile
    }

    // MARK: Stack

    private func top() throws(CheckpointError) -> PickleValue {
        guard let value = stack.last, stack.count > marks.last ?? 0 else {
            throw fail("it takes from an empty stack")
        }
        return value
    }

    private mutating func pop() throws(CheckpointError) -> PickleValue {
        let value = try top()
        stack.removeLast()
        return value
    }

    private mutating func pop(_ count: Int) throws(CheckpointError) -> [PickleValue] {
        guard stack.count - (marks.last ?? 0) >= count else {
            throw fail("it takes from an empty stack")
        }
        defer { stack.removeLast(count) }
        return Array(stack.suffix(count))
    }

    private mutating func popToMark() throws(CheckpointError) -> [PickleValue] {
        guard let mark = marks.popLast() else { throw fail("a mark is missing") }
        defer { stack.removeSubrange(mark...) }
        return Array(stack[mark...])
    }

    // MARK: Containers

    /// Counts `count` more values in a container (the container itself counts as one).
    private mutating func account(_ count: Int) throws(CheckpointError) {
        stored += count + 1
        guard stored <= Self.maximumValues else { throw fail("too many values") }
    }

    private mutating func sequence(_ items: [PickleValue]) throws(CheckpointError) -> Int32 {
        try account(items.count)
        sequences.append(items)
        return Int32(sequences.count - 1)
    }

    private mutating func tuple(_ items: [PickleValue]) throws(CheckpointError) {
        stack.append(.tuple(try sequence(items)))
    }

    private mutating func list(_ items: [PickleValue]) throws(CheckpointError) {
        stack.append(.list(try sequence(items)))
    }

    private mutating func newDictionary() throws(CheckpointError) -> PickleValue {
        try account(0)
        dictionaries.append([])
        return .dict(Int32(dictionaries.count - 1))
    }

    private mutating func dictionary(_ items: [PickleValue]) throws(CheckpointError) {
        stack.append(try newDictionary())
        try setItems(items)
    }

    private mutating func append(_ items: [PickleValue]) throws(CheckpointError) {
        guard case .list(let index) = try top() else {
            throw fail("items for something that is not a list")
        }
        try account(items.count)
        sequences[Int(index)] += items
    }

    private mutating func setItems(_ items: [PickleValue]) throws(CheckpointError) {
        guard case .dict(let index) = try top(), items.count.isMultiple(of: 2) else {
            throw fail("entries for something that is not a dictionary")
        }
        try account(items.count)
        for position in stride(from: 0, to: items.count, by: 2) {
            dictionaries[Int(index)].append((items[position], items[position + 1]))
        }
    }

    // MARK: Memo

    private mutating func remember(_ id: Int) throws(CheckpointError) {
        memo[id] = try top()
        guard memo.count <= Self.maximumMemo else { throw fail("too many remembered values") }
    }

    private mutating func recall(_ id: Int) throws(CheckpointError) {
        guard let value = memo[id] else { throw fail("nothing is remembered as \(id)") }
        stack.append(value)
    }

    // MARK: Objects

    private func global(_ module: String, _ name: String) throws(CheckpointError) -> PickleGlobal {
        guard let known = PickleGlobal(module, name) else {
            throw fail("it asks for '\(module).\(name)', which does not belong in a checkpoint")
        }
        return known
    }

    private mutating func call(
        _ function: PickleGlobal, _ arguments: [PickleValue]
    ) throws(CheckpointError) -> PickleValue {
        switch function {
        case .orderedDict:
            let made = try newDictionary()
            guard let argument = arguments.first else { return made }
            // OrderedDict([[key, value], ...])
            guard arguments.count == 1, case .list(let pairs) = argument,
                case .dict(let index) = made
            else { throw fail("an ordered dictionary of something other than pairs") }
            try account(sequences[Int(pairs)].count * 2)
            for pair in sequences[Int(pairs)] {
                switch pair {
                case .list(let items) where sequences[Int(items)].count == 2,
                    .tuple(let items) where sequences[Int(items)].count == 2:
                    let items = sequences[Int(items)]
                    dictionaries[Int(index)].append((items[0], items[1]))
                default: throw fail("an ordered dictionary of something other than pairs")
                }
            }
            return made
        case .size:
            guard arguments.count == 1 else { throw fail("a size without extents") }
            return arguments[0]
        case .harmless: return .opaque
        case .rebuildTensor: return try tensor(arguments, nil)
        case .rebuildTensorV3:
            guard arguments.count >= 7, case .global(.dtype(let dtype, let name)) = arguments[6]
            else { throw fail("a tensor without an element type") }
            return try tensor(arguments, (dtype, name))
        case .rebuildParameter:
            guard let first = arguments.first, case .tensor = first else {
                throw fail("a parameter that is not a tensor")
            }
            return first
        case .rebuildFromType:
            guard arguments.count >= 3, case .global(let inner) = arguments[0],
                inner != .rebuildFromType, case .tuple(let index) = arguments[2]
            else { throw fail("a tensor of an unknown class") }
            return try call(inner, sequences[Int(index)])
        case .tensorClass, .dtype, .storage, .record: throw fail("a call of a type")
        }
    }

    /// torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[,
    /// metadata])
    private mutating func tensor(
        _ arguments: [PickleValue], _ type: (dtype: DType?, name: String)?
    ) throws(CheckpointError) -> PickleValue {
        guard arguments.count >= 4, case .storage(let index) = arguments[0],
            case .int(let offset) = arguments[1], let shape = integers(arguments[2]),
            let strides = integers(arguments[3]), shape.count == strides.count
        else { throw fail("a tensor with an invalid description") }
        let metadata = arguments.count > (type == nil ? 6 : 7) ? arguments.last : nil
        if case .dict(let index)? = metadata, !dictionaries[Int(index)].isEmpty {
            throw fail("a tensor with conjugate or negative views")
        }
        let storage = storages[Int(index)]
        let dtype = type == nil ? storage.dtype : type?.dtype
        guard let name = type?.name ?? storage.foreign ?? dtype.map({ "\($0)" }) else {
            throw fail("a tensor without an element type")
        }
        try account(2 * shape.count)
        tensors.append(
            PickledTensor(
                storage: index, dtype: dtype, type: name, shape: shape, strides: strides,
                offset: offset))
        return .tensor(Int32(tensors.count - 1))
    }

    /// ("storage", type, key, location, count[, view]): the location (which device) is ignored.
    private mutating func persistent(_ id: PickleValue) throws(CheckpointError) -> PickleValue {
        guard case .tuple(let index) = id, (5...6).contains(sequences[Int(index)].count),
            text(sequences[Int(index)][0]) == "storage",
            case .global(.storage(let dtype, let foreign)) = sequences[Int(index)][1],
            case .text(let key) = sequences[Int(index)][2],
            case .int(let count) = sequences[Int(index)][4], count >= 0
        else { throw fail("a reference to something that is not a storage") }
        // Views of storages have not been written since PyTorch 0.4.
        if sequences[Int(index)].count == 6 {
            guard case .none = sequences[Int(index)][5] else { throw fail("a view of a storage") }
        }
        try account(4)
        storages.append(
            PickledStorage(dtype: dtype, foreign: foreign, key: key, count: count))
        return .storage(Int32(storages.count - 1))
    }
}
