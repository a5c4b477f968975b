// Captions that are made: always the same, in words that nano knows.

import Quality
import Testing

@testable import NanoStudy

@Suite struct CaptionMakerTests {
    private static let known = [Caption(prompt: "a red ball", answers: [0, 0, 1, 1, 0, 3, 2, 1])]

    @Test func theyFollowTheKnownOnes() {
        let captions = CaptionMaker.extending(Self.known, to: 1500)
        #expect(captions.count == 1500 && captions[0] == Self.known[0])
        #expect(Set(captions.map(\.prompt)).count == 1500)
        #expect(CaptionMaker.extending(Self.known, to: 20) == Array(captions.prefix(20)))
        // A caption keeps its place, and with it its noise, whatever the count.
        #expect(CaptionMaker.extending(captions, to: 3) == Array(captions.prefix(3)))
        #expect(captions.allSatisfy { $0.answers.count == Attribute.allCases.count })
        for caption in captions {
            let text = caption.prompt
            #expect(text.hasSuffix(".") || text == "a red ball", "\(text)")
            #expect(!text.contains("_") && !text.contains("  "), "\(text)")
        }
    }

    @Test("every class of every attribute comes, except the motions that no held-out caption has")
    func allClasses() {
        let captions = CaptionMaker.extending([], to: 1000)
        for (index, attribute) in Attribute.allCases.enumerated() {
            let seen = Set(captions.map { attribute.classes[$0.answers[index]] })
            let missing: Set = attribute == .motion ? ["left", "toward", "still"] : []
            #expect(seen == Set(attribute.classes).subtracting(missing))
        }
    }

    @Test func theAnswersAreInTheWords() throws {
        var maker = CaptionMaker()
        for _ in 0..<300 {
            let caption = maker.next()
            let words = Set(caption.prompt.lowercased().split { !$0.isLetter }.map(String.init))
            func answer(_ attribute: Attribute) -> String {
                attribute.classes[
                    caption.answers[Attribute.allCases.firstIndex(of: attribute)!]]
            }
            let shapes = ["ball": "sphere", "box": "cube"]
            #expect(words.contains { (shapes[$0] ?? $0) == answer(.shape) }, "\(caption.prompt)")
            let colors = ["turquoise": "cyan", "violet": "purple"]
            #expect(words.contains { (colors[$0] ?? $0) == answer(.color) }, "\(caption.prompt)")
            let isLarge = !words.isDisjoint(with: ["large", "big", "huge"])
            #expect(isLarge == (answer(.size) == "large"), "\(caption.prompt)")
            let isNight = words.contains("night")
            #expect(isNight == (answer(.sky) == "night"), "\(caption.prompt)")
        }
    }
}
