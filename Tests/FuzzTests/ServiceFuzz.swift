// What clients and servers of a network say: bodies of requests, headers of a hub.

import Catalog
import Families
import FoundationEssentials
import Runs
import Testing

@testable import Downloads
@testable import Service

@Suite("Fuzzing what comes over a network")
struct ServiceFuzz {
    static let form = "multipart/form-data; boundary=-x-"

    /// Bodies as clients send them, with their types.
    private static let bodies: [(type: String, text: String)] = [
        (
            "application/json",
            #"{"prompt": "a b\u00e4ll", "size": "64x64", "num_frames": 9, "seed": "random", "steps": 2,"#
                + #" "lora": [{"name": "a", "strength": 0.5}], "extra_body": {"guidance_scale": 1.5, "ode": true},"#
                + #" "input_reference": "data:image/png;base64,iVBORw0KGgo=", "attention_type": "sla", "sla_topk": 0.2}"#
        ),
        (
            form,
            "---x-\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na ball\r\n---x-\r\n"
                + "Content-Disposition: form-data; name=\"input_reference\"; filename=\"a.png\"\r\n"
                + "Content-Type: image/png\r\n\r\n\u{1}PNG\r\n\r\n---x-\r\n"
                + "Content-Disposition: form-data; name=\"lora[name]\"\r\n\r\nb\r\n---x-\r\n"
                + "Content-Disposition: form-data; name=\"seconds\"\r\n\r\n4\r\n---x---\r\n"
        ),
        (
            "application/x-www-form-urlencoded",
            "prompt=a+red%20ball&size=128x64&fps=16&shift=3&steps%5B%5D=4&extra_params=%7B%22seed%22%3A1%7D"
        ),
    ]

    @Test("bodies of requests", arguments: [0, 1, 2])
    func bodies(number: Int) throws {
        let (type, text) = Self.bodies[number]
        let family = try Catalog.published.open(ModelChoice(nano)).family
        func use(_ bytes: [UInt8]) throws {
            let draft = try Draft(try Body(bytes, contentType: type))
            let request = try draft.request(for: family) { 1 }
            #expect(request.prompt == draft.prompt)
        }
        var read = 0
        fuzz([Array(text.utf8)]) { bytes in
            if (try? use(bytes)) != nil { read += 1 }
        }
        #expect(read > 0)
    }

    @Test("headers of a hub")
    func headers() throws {
        let file = try HubFile("a/b", "model.safetensors")
        let answer =
            "HTTP/1.1 302 Found\r\nLocation: https://cdn.example/x?y=1\r\nETag: \"6\"\r\n"
            + "X-Linked-Etag: \"\(String(repeating: "0f", count: 32))\"\r\nX-Linked-Size: 5\r\n"
            + "Content-Range: bytes 5-9/100\r\nRetry-After: 3\r\nContent-Length: 1000\r\n"
        var identified = 0
        fuzz([Array(answer.utf8)]) { bytes in
            var head = Head()
            for line in bytes.split(separator: 0x0A) {
                head.take(String(decoding: line, as: UTF8.self))
            }
            guard let identity = try? HubClient.identity(head, file) else { return }
            identified += 1
            #expect(identity.size >= 0)
            #expect(identity.sha256.map { $0.utf8.count == 64 } ?? true)
        }
        #expect(identified > 0)
    }
}
