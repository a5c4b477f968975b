// The embedded CUDA sources: their texts, their includes, and hashes of their content.

internal import CUDASources
internal import Ground

/// The files of Kernels/, which are embedded in the binary.
enum KernelText {
    static let names: [String] = (0..<cuda_source_count()).map {
        String(cString: cuda_source_at($0).name)
    }

    private static let texts: [String: String] = Dictionary(
        uniqueKeysWithValues: (0..<cuda_source_count()).map {
            let source = cuda_source_at($0)
            return (String(cString: source.name), String(cString: source.text))
        })

    private static let digests: [String: String] = texts.mapValues { text in
        var hash = SHA256()
        hash.update(text.utf8)
        return hash.finish()
    }

    private static let directIncludes = texts.mapValues(quotedIncludes)

    static subscript(name: String) -> String? { texts[name] }

    /// The names of all headers that `name` includes, directly or through others.
    static func includes(of name: String) -> [String] {
        var found: Set<String> = []
        func visit(_ name: String) {
            for include in directIncludes[name] ?? [] where found.insert(include).inserted {
                visit(include)
            }
        }
        visit(name)
        return found.sorted()
    }

    /// The names in `#include "…"` lines.
    static func quotedIncludes(in text: String) -> [String] {
        let quote = UInt8(ascii: "\"")
        return text.utf8.split(separator: UInt8(ascii: "\n")).compactMap { line in
            let words = line.drop { $0 == UInt8(ascii: " ") }
            guard words.starts(with: "#include".utf8), let open = words.firstIndex(of: quote)
            else { return nil }
            return String(
                decoding: words[words.index(after: open)...].prefix { $0 != quote }, as: UTF8.self)
        }
    }

    /// A hash of everything that determines the machine code except the compiler: sources, names, options,
    /// architecture.
    static func key(of unit: KernelUnit, for architecture: Architecture) -> String {
        var hash = SHA256()
        for file in [unit.file] + includes(of: unit.file) {
            hash.update(framed: file)
            hash.update(framed: digests[file] ?? "")
        }
        for text in Compiler.options(for: unit, architecture) { hash.update(framed: text) }
        for kernel in unit.kernels { hash.update(framed: kernel) }
        return hash.finish()
    }
}
