/// The protocol's pieces: forms, bodies, fields, keys, ranges, hosts.

import Families
import FoundationEssentials
import HTTPTypes
import Hummingbird
import Jobs
import Runs
import Testing

@testable import Service

private func form(_ text: String) -> [UInt8] {
    Array(
        text.split(separator: "\n", omittingEmptySubsequences: false).joined(separator: "\r\n").utf8
    )
}

/// The code of the error that `body` throws.
private func code(_ body: () throws -> Void) -> String? {
    do {
        try body()
        return nil
    } catch { return (error as? APIError)?.code ?? "\(error)" }
}

@Suite struct MultipartTests {
    @Test("Parts are told by their boundary alone: contents may hold anything else")
    func parts() throws {
        let boundary = try #require(
            Multipart.boundary(of: "multipart/form-data; charset=utf-8; boundary=\"a b\""))
        #expect(boundary == "a b")
        let body =
            form(
                """
                preamble
                --a b
                Content-Disposition: form-data; name="prompt"

                two
                lines --a b
                --a b  \t
                content-disposition: form-data; name="input_reference"; filename="a;\\"b\\".png"
                Content-Type: image/png

                """) + [0x0D, 0x0A, 0x00, 0xFF]
            + form("\n--a b\nContent-Disposition: form-data; name=empty\n\n\n--a b--\nepilogue")
        let parts = try Multipart.parts(body, boundary: boundary)
        #expect(parts.map(\.name) == ["prompt", "input_reference", "empty"])
        #expect(String(decoding: parts[0].bytes, as: UTF8.self) == "two\r\nlines --a b")
        #expect(parts[1].filename == "a;\"b\".png")
        #expect(parts[1].contentType == "image/png")
        #expect(parts[1].bytes == [0x00, 0xFF] || parts[1].bytes == [0x0D, 0x0A, 0x00, 0xFF])
        #expect(parts[2].bytes.isEmpty)
    }

    @Test("What is no form is refused, cut at any place")
    func damaged() throws {
        let body = form(
            "--x\nContent-Disposition: form-data; name=\"a\"\n\n1\n--x\nContent-Disposition: form-data; name=\"b\"\n\n2\n--x--\n"
        )
        #expect(try Multipart.parts(body, boundary: "x").count == 2)
        // The last line may lack its end.
        for length in 0..<(body.count - 4) {
            #expect(
                code { _ = try Multipart.parts(Array(body.prefix(length)), boundary: "x") }
                    == "invalid_body", "\(length)")
        }
        #expect(
            code { _ = try Multipart.parts(form("--x\nno colon\n\n1\n--x--"), boundary: "x") }
                == "invalid_body")
        #expect(
            code { _ = try Multipart.parts(form("--x\nA: b\n\n1\n--x--"), boundary: "x") }
                == "invalid_body")
        let many =
            String(repeating: "--x\nContent-Disposition: form-data; name=a\n\n1\n", count: 300)
            + "--x--"
        #expect(code { _ = try Multipart.parts(form(many), boundary: "x") } == "invalid_body")
        for type in [
            "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x",
            "application/json",
            "multipart/form-data; boundary=" + String(repeating: "x", count: 71),
        ] {
            #expect(Multipart.boundary(of: type) == nil)
        }
    }

    @Test("Damaged forms never trap")
    func fuzzed() throws {
        let body = form(
            "--x\nContent-Disposition: form-data; name=\"a[b]\"; filename=\"c\"\nContent-Type: t\n\n1\n--x\nContent-Disposition: form-data; name=\"b\"\n\n2\n--x--\n"
        )
        var generator = SystemRandomNumberGenerator()
        for _ in 0..<20000 {
            var damaged = body
            for _ in 0..<Int.random(in: 1...4, using: &generator) {
                let index = Int.random(in: 0..<damaged.count, using: &generator)
                switch Int.random(in: 0..<3, using: &generator) {
                case 0: damaged[index] = UInt8.random(in: 0...255, using: &generator)
                case 1: damaged.remove(at: index)
                default:
                    damaged.insert(
                        damaged[Int.random(in: 0..<damaged.count, using: &generator)], at: index)
                }
            }
            _ = code { _ = try Body(damaged, contentType: "multipart/form-data; boundary=x") }
        }
    }
}

@Suite struct BodyTests {
    @Test("JSON, forms and their brackets are the same fields")
    func same() throws {
        let json = try Body(
            Array(
                #"{"prompt": "a & b", "lora": {"name": "x", "scale": "0.5"}, "steps": ["1", "2"]}"#
                    .utf8),
            contentType: "application/json; charset=utf-8")
        let urlencoded = try Body(
            Array("prompt=a+%26%20b&lora%5Bname%5D=x&lora[scale]=0.5&steps[]=1&steps%5b%5d=2".utf8),
            contentType: "application/x-www-form-urlencoded")
        #expect(json == urlencoded)
        #expect(json.fingerprint(remixing: nil) == urlencoded.fingerprint(remixing: nil))
        #expect(json.fingerprint(remixing: nil) != json.fingerprint(remixing: "video"))
    }

    @Test("Fields in extra_body count, and those outside of it win")
    func extra() throws {
        let body = try Body(
            Array(
                #"{"prompt": "a", "fps": 8, "extra_body": {"fps": 9, "seed": 18446744073709551615}}"#
                    .utf8),
            contentType: nil)
        let draft = try Draft(body)
        #expect(draft.framesPerSecond == 8)
        #expect(draft.seed == .max)
    }

    @Test("What is no body, or says a field twice, is refused")
    func refused() {
        for (text, type) in [
            ("{", "application/json"), ("[]", "application/json"), ("\"a\"", "application/json"),
            ("a", "text/plain"), ("a=1&a=2", "application/x-www-form-urlencoded"),
            ("a[b]=1&a[b]=2", "application/x-www-form-urlencoded"),
            ("a[b][c]=1", "application/x-www-form-urlencoded"),
            ("a=%FF", "application/x-www-form-urlencoded"),
            (#"{"extra_body": 3}"#, "application/json"),
        ] {
            let found = code { _ = try Body(Array(text.utf8), contentType: type) }
            #expect(["invalid_body", "unknown_field", "invalid_value"].contains(found), "\(text)")
        }
    }
}

@Suite struct DraftTests {
    private func draft(_ json: String) throws -> Draft {
        try Draft(try Body(Array(json.utf8), contentType: "application/json"))
    }

    @Test("The fields of the three engines under their names")
    func fields() throws {
        let draft = try draft(
            #"""
            {"prompt": "p", "model": "nano", "size": "64x80", "seconds": "1", "fps": "8", "seed": "7", "steps": 2,
             "negative_prompt": "n", "ode": "true", "sigma_max": 90, "attention_type": "sla", "sla_topk": 0.5, "crf": 20,
             "lora": [{"name": "x", "scale": 0.5, "expert": "low_noise"}, "y"], "user": "u", "n": 1,
             "input_reference": {"image_url": "data:image/png;base64,AAEC"},
             "enable_teacache": false, "output_path": null, "quality": ""}
            """#)
        #expect(draft.picture == [0, 1, 2])
        let request = try draft.request(for: .wan21) { 1 }
        #expect(request.prompt == "p" && request.width == 64 && request.height == 80)
        #expect(request.frames == 9 && request.framesPerSecond == 8 && request.seed == 7)
        #expect(request.sampling == .distilled(.init(steps: 2, sigmaMax: 90, ode: true)))
        #expect(request.arithmetic.attention == .sla && request.arithmetic.topK == 0.5)
        #expect(
            request.loras == [
                RequestedLoRA("x", strength: 0.5, expert: .lowNoise), RequestedLoRA("y"),
            ])
        #expect(draft.crf == 20 && draft.user == "u")
    }

    @Test(
        "Frames come from seconds where they are not said, as the next number that the model makes")
    func seconds() throws {
        for (seconds, frames) in [("2", 33), ("0.1", 5), ("0.06", 1), ("5", 81), ("1.5", 25)] {
            let request = try draft(#"{"prompt": "p", "seconds": "\#(seconds)"}"#).request(
                for: .wan21
            ) { 1 }
            #expect(request.frames == frames, "\(seconds)")
        }
        let both = try draft(#"{"prompt": "p", "seconds": 9, "num_frames": 5}"#).request(
            for: .wan21
        ) { 1 }
        #expect(both.frames == 5)
    }

    @Test("A remix keeps what is not said again")
    func remix() throws {
        let first = try draft(#"{"prompt": "p", "size": "64x64", "seed": 3, "steps": 1}"#).request(
            for: .wan21
        ) { 1 }
        var second = try draft(#"{"prompt": "q"}"#).request(for: .wan21, base: first) { 99 }
        #expect(second.seed == 3 && second.width == 64 && second.prompt == "q")
        second.prompt = "p"
        #expect(second == first)
    }

    @Test("What is not known or not done is refused by name")
    func refused() {
        for (json, expected, param) in [
            (#"{"promt": "a"}"#, "unknown_field", "promt"),
            (#"{"prompt": 3}"#, "invalid_value", "prompt"),
            (#"{"fps": 2.5}"#, "invalid_value", "fps"),
            (#"{"fps": true}"#, "invalid_value", "fps"),
            (#"{"seed": -3}"#, "invalid_value", "seed"),
            (#"{"seed": 18446744073709551616}"#, "invalid_value", "seed"),
            (#"{"size": "big"}"#, "invalid_value", "size"),
            (#"{"guidance_scale": "nan"}"#, "invalid_value", "guidance_scale"),
            (#"{"n": 2}"#, "unsupported_field", "n"),
            (#"{"enable_upscaling": true}"#, "unsupported_field", "enable_upscaling"),
            (#"{"output_path": "/etc/x"}"#, "unsupported_field", "output_path"),
            (#"{"input_reference": "/etc/passwd"}"#, "invalid_value", "input_reference"),
            (
                #"{"input_reference": "https://example.org/a.png"}"#, "invalid_value",
                "input_reference"
            ),
            (#"{"input_reference": "data:image/png;base64,"}"#, "invalid_value", "input_reference"),
            (#"{"input_reference": {"file_id": "x"}}"#, "unsupported_field", "input_reference"),
            (#"{"lora": {"path": "/etc/x"}}"#, "unknown_field", "lora[path]"),
            (#"{"lora": {"scale": 1}}"#, "missing_field", "lora[name]"),
            (#"{"sampler": "ddim"}"#, "invalid_value", "sampler"),
            (#"{"crf": 99}"#, "invalid_value", "crf"),
        ] {
            do {
                _ = try draft(json)
                Issue.record("\(json) was taken")
            } catch {
                #expect((error as? APIError)?.code == expected, "\(json)")
                #expect((error as? APIError)?.param == param, "\(json)")
                #expect((error as? APIError)?.status == 400, "\(json)")
            }
        }
        #expect(code { _ = try draft("{}").request(for: .wan21) { 1 } } == "missing_field")
        #expect(
            code { _ = try draft(#"{"prompt": "a", "flow_shift": 3}"#).request(for: .wan21) { 1 } }
                == "conflict")
    }
}

@Suite struct AccessTests {
    private func check(
        _ options: ServiceOptions, path: String = "/v1/videos", _ headers: [(String, String)] = [],
        host: String?
    ) -> String? {
        var fields = HTTPFields()
        for (name, value) in headers {
            guard let name = HTTPField.Name(name) else { continue }
            fields.append(HTTPField(name: name, value: value))
        }
        let head = HTTPRequest(
            method: .get, scheme: "http", authority: host, path: path, headerFields: fields)
        let request = Request(head: head, body: RequestBody(buffer: ByteBuffer()))
        return code { try Guard(options).check(request) }
    }

    @Test("Without a key only this machine is let in, by a loopback name and not from another page")
    func loopback() {
        var options = ServiceOptions()
        for host in ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"] {
            #expect(check(options, host: host) == nil, "\(host)")
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil:8000", nil] {
            #expect(check(options, host: host) == "foreign_host")
        }
        #expect(
            check(options, [("Origin", "http://localhost:8000")], host: "localhost:8000") == nil)
        for origin in ["http://localhost:9000", "https://evil.example", "null"] {
            #expect(
                check(options, [("Origin", origin)], host: "localhost:8000") == "foreign_origin")
        }
        options.allowedHosts = ["videos.example"]
        options.allowedOrigins = ["https://page.example"]
        #expect(check(options, host: "videos.example") == nil)
        #expect(check(options, [("Origin", "https://page.example")], host: "localhost") == nil)
    }

    @Test("With keys each request needs one, whatever its host")
    func keys() {
        var options = ServiceOptions()
        options.keys = APIKeys(["0123456789abcdef", "fedcba9876543210"])
        #expect(
            check(options, [("Authorization", "Bearer 0123456789abcdef")], host: "x.example") == nil
        )
        #expect(
            check(options, [("Authorization", "bearer  fedcba9876543210")], host: "x.example")
                == nil)
        for value in [
            "Bearer 0123456789abcdeF", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef",
            "Bearer 0123456789abcde",
        ] {
            #expect(
                check(options, [("Authorization", value)], host: "localhost") == "invalid_api_key")
        }
        #expect(check(options, host: "localhost") == "invalid_api_key")
        for path in ["/health", "/ready", "/openapi.json", "/", "/page/page.js"] {
            #expect(check(options, path: path, host: "x.example") == nil)
        }
        #expect(check(options, path: "/metrics", host: "localhost") == "invalid_api_key")
        #expect(check(options, path: "/page/../v1/videos", host: "localhost") == nil)
    }
}

@Suite struct AnswerTests {
    @Test("Ranges of bytes")
    func ranges() {
        func range(_ text: String) -> ClosedRange<Int>?? { ByteRange(text, size: 100).map(\.range) }
        #expect(range("bytes=0-9") == .some(0...9))
        #expect(range("bytes=90-") == .some(90...99))
        #expect(range("bytes=90-1000") == .some(90...99))
        #expect(range("bytes=-10") == .some(90...99))
        #expect(range("bytes=-1000") == .some(0...99))
        #expect(range("bytes=100-") == .some(nil))
        #expect(range("bytes=-0") == .some(nil))
        for text in ["bytes=9-0", "bytes=a-b", "items=0-9", "bytes=0-1,3-4", "bytes=-", "bytes=1"] {
            #expect(range(text) == nil, "\(text)")
        }
    }

    @Test("JSON is written as it is read, with every text and number")
    func json() throws {
        let texts = ["", "a\"b\\c", "\n\r\t\u{1}\u{7F}\u{2028}", "球 👩‍👩‍👧", "</script>"]
        for text in texts {
            #expect(try JSON(parsing: Array(JSON.string(text).text.utf8)) == .string(text))
        }
        for digits in ["0", "-1", "18446744073709551615", "0.5"] {
            #expect(try JSON(parsing: Array(digits.utf8)) == .number(digits))
        }
        #expect(JSON.number(1.25).text == "1.25")
        #expect(JSON.number(2.0).text == "2")
        #expect(JSON.number(Double.nan).text == "null")
        let value: JSON = ["b": [true, .null, "x"], "a": ["c": .number(3)]]
        #expect(value.text == #"{"a":{"c":3},"b":[true,null,"x"]}"#)
        #expect(try JSON(parsing: Array(value.text.utf8)) == value)
    }

    @Test("Messages for clients name no folder of this machine")
    func folders() {
        #expect(
            APIError.hidingFolders("/srv/models/a b.pth is no model: see ./x/y.txt and w/o")
                == "a b.pth is no model: see y.txt and w/o")
    }

    @Test("Every file of the page and the description are embedded, and the description is JSON")
    func resources() throws {
        let root =
            "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
            + "/Sources/ServiceResources"
        let names =
            try FileManager.default.contentsOfDirectory(atPath: root + "/Page").map {
                ("Page/" + $0, $0)
            } + [("openapi.json", "openapi.json")]
        for (path, name) in names {
            let resource = try #require(Resource(name), "\(name)")
            #expect(Data(resource.bytes) == FileManager.default.contents(atPath: root + "/" + path))
        }
        #expect(Resource("../openapi.json") == nil)
        let document = try JSON(parsing: try #require(Resource("openapi.json")).bytes)
        guard case .object(let members) = document else { return #expect(Bool(false)) }
        #expect(members["openapi"] == "3.1.0")
    }
}

@Suite struct EventTests {
    @Test("Those who listen to one video hear of it alone, and the stream ends with it")
    func streams() async {
        let hub = EventHub()
        let one = hub.listen(to: "a") { [("video", ["id": "a"])] }
        let all = hub.listen(to: nil) { [] }
        hub.tell("progress", of: "b") { ["id": "b"] }
        hub.tell("queue", of: nil) { [:] }
        hub.tell("completed", of: "a", isLast: true) { ["id": "a"] }
        var names: [String] = []
        var numbers: [Int] = []
        for await event in one {
            names.append(event.name)
            numbers.append(event.number)
        }
        #expect(names == ["video", "completed"])
        #expect(numbers == numbers.sorted())
        hub.close()
        var others: [String] = []
        for await event in all { others.append(event.name) }
        #expect(others == ["progress", "queue", "completed"])
        var late = 0
        for await _ in hub.listen(to: nil, first: { [("x", .null)] }) { late += 1 }
        #expect(late == 0)
        #expect(
            ServerEvent(number: 3, name: "n", data: "{}").text == "id: 3\nevent: n\ndata: {}\n\n")
    }
}
