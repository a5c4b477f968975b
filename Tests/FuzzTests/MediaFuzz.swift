// Headers and metadata of damaged pictures: whatever the bytes, an answer and no trap.

import Ground
import Testing

@testable import Media

@Suite("Fuzzing pictures")
struct MediaFuzz {
    private var pictures: [[UInt8]] { corpus { !$0.hasPrefix("tokenizer") } }

    @Test("headers")
    func headers() {
        let corpus = pictures
        #expect(corpus.count >= 10)
        #expect(corpus.allSatisfy { ImageHeader($0)?.isTruncated == false })
        fuzz(corpus) { bytes in
            guard let header = ImageHeader(bytes) else { return }
            #expect((1...8).contains(header.orientation))
            if let width = header.width, let height = header.height {
                #expect(width >= 0 && height >= 0)
            }
        }
    }

    @Test("metadata, read and added")
    func metadata() {
        let marked = pictures.flatMap { bytes in
            [.gif, .webp, .png].compactMap { (kind: Metadata.Kind) in
                Metadata.adding(#"{"a": "<b> & c"}"#, to: bytes, kind)
            }
        }
        #expect(marked.count >= 4)
        fuzz(marked) { bytes in
            for kind in [Metadata.Kind.gif, .webp, .png] {
                _ = Metadata.find(in: bytes, kind)
                if let more = Metadata.adding("x", to: bytes, kind) {
                    #expect(more.count > bytes.count)
                }
            }
        }
    }
}
